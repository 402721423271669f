"""torch.utils.checkpoint with every layer: the gradients are bitwise those of a plain backward pass."""

from __future__ import annotations

import functools

import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import Bypass, ChannelGate, GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear, freeze
from optimizers import same_bits
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)


def network():
    """Masked, gated and frozen weights; channels chosen by what they hold; draws that a second forward must repeat."""
    torch.manual_seed(0)
    model = nn.Sequential(
        MaskedConv2d(2, 6, 3, padding=1, mask=Mask.random((6, 2, 3, 3), 0.5)),
        ChannelGate(k=3, straight_through=True),
        GatedConv2d(6, 4, 3, kind="hard_concrete"),
        nn.Flatten(),
        MaskedLinear(64, 80, mask=Mask.random((80, 64), 0.2)),  # large enough for a plan
        Bypass(MaskedLinear(80, 80, mask=Mask.random((80, 80), 0.2)), p=0.5, per_sample=True),
        nn.Tanh(),
        Bypass(nn.Sequential(nn.Linear(80, 80), nn.Dropout(0.5)), gate=nn.Linear(80, 1)),
        GatedLinear(80, 9, kind="straight_through"),
        GatedLinear(9, 9),
        nn.Linear(9, 5),
    )
    freeze(model[10].weight, Mask.random((5, 9), 0.5))
    return model


def selective(model, x):
    """Keeps what this package's ops give, and computes the rest again."""
    ours = [torch.ops.maskfuse.masked_linear.default, torch.ops.maskfuse.masked_conv2d.default]

    def policy(context, op, *args, **kwargs):
        kept.append(op in ours)
        return CheckpointPolicy.MUST_SAVE if op in ours else CheckpointPolicy.PREFER_RECOMPUTE

    kept = []
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    assert any(kept)
    return y


RUNS = {
    "whole": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
    "in segments": lambda model, x: checkpoint_sequential(model, 3, x, use_reentrant=False),
    "selective": selective,
}


def in_fours(model, x):
    for first in range(0, len(model), 4):
        x = checkpoint(model[first : first + 4], x, use_reentrant=False)
    return x


def gradients(run, dtype, autocast):
    model = network().to(dtype)
    x = torch.randn(8, 2, 6, 6, dtype=dtype, requires_grad=True, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = run(model, x)
    y.pow(2).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())], model


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), (torch.float64, False), (torch.float32, True)])
@pytest.mark.parametrize("how", RUNS)
def test_gradients_are_bitwise_the_same(how, dtype, autocast):
    got, model = gradients(RUNS[how], dtype, autocast)
    want, _ = gradients(lambda model, x: model(x), dtype, autocast)
    assert len(got) == len(want) > 15
    for one, two in zip(got, want, strict=True):
        assert (one is None) == (two is None)
        assert one is None or same_bits(one, two)
    for index in (0, 4):
        layer = model[index]
        assert layer.weight.grad.any() and not layer.weight.grad[~layer.mask.dense()].any()
    assert model[10].weight.grad.any()


def test_less_is_kept():
    """What it is for: of a stack of masked layers what four of them are given, instead of what each is."""
    torch.manual_seed(0)
    model = nn.Sequential(*(MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.2)) for _ in range(16)))
    for run, want in ((lambda model, x: model(x), 16), (in_fours, 4)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            run(model, torch.randn(32, 64, requires_grad=True))
        assert len([t for t in kept if t.shape == (32, 64)]) == want
