"""Whole training steps under torch.compile: forward, backward and optimizer, of masked, gated and frozen layers."""

from __future__ import annotations

import copy

import pytest
import torch
from maskfuse import Mask, protect
from maskfuse.nn import GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear, freeze, frozen_mask
from optimizers import same_bits
from torch import nn, optim
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

SIZE = 80  # of the hidden layer: large enough for plans, whose tensors change with the mask


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        MaskedConv2d(2, 4, 3, padding=1, mask=Mask.random((4, 2, 3, 3), 0.5)),
        nn.ReLU(),
        GatedConv2d(4, 3, 3),
        nn.Flatten(),
        MaskedLinear(48, SIZE, mask=Mask.random((SIZE, 48), 0.3)),
        nn.ReLU(),
        MaskedLinear(SIZE, SIZE),
        nn.Tanh(),
        GatedLinear(SIZE, 9),
        nn.Linear(9, 5),
    )
    freeze(model[9].weight, Mask.random((5, 9), 0.5))
    model[6].set_mask(Mask.random((SIZE, SIZE), 0.2), retain=True)
    return model


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.arange(8) % 5


def loss_of(model, x, y):
    penalty = sum(layer.l1_penalty() for layer in (model[2], model[8]))
    return F.cross_entropy(model(x), y) + 1e-4 * penalty


def train(model, loss, compiled_step, masks, steps=5):
    """Masks change after the second step, to others of the same kinds."""
    optimizer = protect(optim.AdamW(model.parameters(), 0.01, weight_decay=0.1), model)
    advance = torch.compile(optimizer.step, backend="aot_eager") if compiled_step else optimizer.step
    losses = []
    for t in range(steps):
        if t == 2:
            for index, mask in masks.items():
                model[index].set_mask(mask, retain=model[index]._retain)
        optimizer.zero_grad()
        value = loss(model, *batch(t))
        value.backward()
        advance()
        losses.append(value.detach())
    return torch.stack(losses)


def run_both(backend, compiled_step):
    eager = network()
    model = copy.deepcopy(eager)
    assert frozen_mask(model[9].weight) == frozen_mask(eager[9].weight)
    masks = {0: Mask.random((4, 2, 3, 3), 0.4), 4: Mask.random((SIZE, 48), 0.2), 6: Mask.random((SIZE, SIZE), 0.1)}
    before = [model[i].weight.detach().clone() for i in (6, 9)]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss_of, fullgraph=True, backend=counter)
    got, want = train(model, compiled, compiled_step, masks), train(eager, loss_of, False, masks)
    torch.testing.assert_close(got, want)
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)
    for index, mask in masks.items():
        layer = model[index]
        assert layer.mask is mask and not layer.weight.grad[~mask.dense()].any() and layer.weight.grad.any()
        assert layer._retain or not layer.weight[~mask.dense()].any()
    under, frozen = ~(network()[6].mask | masks[6]).dense(), ~frozen_mask(model[9].weight).dense()
    assert same_bits(model[6].weight[under], before[0][under]) and before[0][under].all()
    assert same_bits(model[9].weight[frozen], before[1][frozen])
    return counter


@pytest.mark.parametrize("compiled_step", [False, True])
def test_training_steps(compiled_step):
    """One graph for forward and loss, and no other one when masks change."""
    counter = run_both("aot_eager", compiled_step)
    assert counter.frame_count <= 2  # sizes of plans may become dynamic, once


@pytest.mark.slow
def test_inductor():
    run_both("inductor", False)


def test_masks_of_the_same_kind_do_not_recompile():
    model = network()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss_of, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(1)
    counts = []
    for t in range(8):
        for index, density in ((0, 0.5), (4, 0.3), (6, 0.2)):
            model[index].set_mask(Mask.random(model[index].weight.shape, density - 0.01 * t, generator))
        loss = compiled(model, *batch(t))
        torch.testing.assert_close(loss, loss_of(model, *batch(t)))
        loss.backward()
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1] <= 2
