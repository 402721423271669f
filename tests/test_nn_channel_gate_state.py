"""ChannelGate: its state, where it travels, what leaves it alone, and bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from channel_gates import INF, MODES, NAN, C, N
from copies import COPIES
from maskfuse.nn import ChannelGate
from torch import nn
from torch.optim.swa_utils import AveragedModel


def test_state_travels():
    mask = MODES["mask"]["mask"]
    gate = ChannelGate(mask, compact=True)
    assert list(gate.state_dict()) == ["mask"] and not list(gate.buffers()) and not list(gate.parameters())
    other = ChannelGate(~mask, compact=True)
    other.load_state_dict(gate.state_dict())
    x = torch.randn(N, C, 3)
    assert torch.equal(other.mask, mask) and torch.equal(other(x), gate(x))
    state = gate.state_dict()
    state["mask"].zero_()
    assert torch.equal(gate.mask, mask)
    assert not any(other.load_state_dict({}))  # a missing entry keeps the mask
    assert torch.equal(other.mask, mask)
    assert not ChannelGate(k=3).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ChannelGate(k=3).load_state_dict(gate.state_dict())
    for bad, message in (
        (torch.ones(C), r"mask must be a bool tensor \[C\], got float32"),
        (torch.ones(C + 1, dtype=torch.bool), r"mask must have shape \[12\], got bool tensor \[13\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gate.load_state_dict({"mask": bad})
    assert torch.equal(gate.mask, mask)
    model = nn.Sequential(nn.Conv2d(3, C, 1), ChannelGate(mask))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.mask"]


def test_checkpoint_helpers_find_the_mask():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    mask = MODES["mask"]["mask"]
    model, twin = nn.Sequential(ChannelGate(mask)), nn.Sequential(ChannelGate(~mask))
    set_model_state_dict(twin, get_model_state_dict(model))
    assert torch.equal(twin[0].mask, mask)


def test_copies():
    for gate in (ChannelGate(MODES["mask"]["mask"], compact=True), ChannelGate(k=3, straight_through=True)):
        x = torch.randn(N, C, 3)
        for again in (copied(gate) for copied in COPIES):
            assert torch.equal(again(x), gate(x)) and repr(again) == repr(gate)
    gate = ChannelGate(MODES["mask"]["mask"])
    twin = copy.deepcopy(gate)
    twin.set_mask(torch.zeros(3, dtype=torch.bool))
    assert gate.mask.shape == (C,) and twin.channels.shape == (0,)


def test_moves_and_casts_leave_the_mask_alone():
    mask = MODES["mask"]["mask"]
    gate = ChannelGate(mask, compact=True)
    for move in (
        gate.half,
        gate.double,
        gate.float,
        lambda: gate.to("meta"),
    ):
        move()
        assert torch.equal(gate.mask, mask) and gate.channels.dtype == torch.int64
    assert gate(torch.randn(N, C, 2, device="meta")).shape == (N, int(mask.sum()), 2)
    gate.to_empty(device="cpu")
    assert torch.equal(gate.mask, mask)
    source = mask.clone()
    gate = ChannelGate(source)
    source.zero_()
    assert torch.equal(gate.mask, mask)
    with torch.inference_mode():
        gate.set_mask(~mask)
    x = torch.randn(N, C, 2, requires_grad=True)
    gate(x).sum().backward()
    assert torch.equal(x.grad[0, :, 0].bool(), ~mask)


def test_averaging_leaves_the_mask_alone():
    model = nn.Sequential(nn.Linear(4, C), ChannelGate(MODES["mask"]["mask"]))
    average = AveragedModel(model, use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module[1].mask, model[1].mask)


def test_repr():
    assert repr(ChannelGate(MODES["mask"]["mask"])) == "ChannelGate(4 of 12 channels)"
    assert repr(ChannelGate(k=4, compact=True)) == "ChannelGate(k=4, statistic=mean_abs, compact=True)"
    gate = ChannelGate(threshold=0.5, statistic="mean", straight_through=True, compact=True, max_channels=3)
    assert repr(gate) == (
        "ChannelGate(threshold=0.5, statistic=mean, straight_through=True, temperature=1, compact=True, max_channels=3)"
    )


X, M = torch.randn(N, C, 2), torch.ones(C, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ChannelGate(), ValueError, "exactly one of mask, k and threshold"),
        (lambda: ChannelGate(M, k=3), ValueError, "exactly one of mask, k and threshold"),
        (lambda: ChannelGate(M.int()), TypeError, r"mask must be a bool tensor \[C\], got int32 tensor \[12\]"),
        (lambda: ChannelGate(M[None]), ValueError, r"mask must have shape \[C\], got bool tensor \[1, 12\]"),
        (lambda: ChannelGate(k=-1), ValueError, "k must be at least 0, got -1"),
        (lambda: ChannelGate(k=0.5), TypeError, "k must be an int, got float"),
        (lambda: ChannelGate(threshold="a"), TypeError, "threshold must be a number, got str"),
        (lambda: ChannelGate(threshold=NAN), ValueError, "threshold must not be NaN"),
        (lambda: ChannelGate(k=3, statistic="max"), ValueError, "statistic must be one of mean, mean_abs, got 'max'"),
        (lambda: ChannelGate(k=3, temperature=0), ValueError, "temperature must be positive, got 0"),
        (lambda: ChannelGate(k=3, temperature=INF), ValueError, "temperature must be positive, got inf"),
        (lambda: ChannelGate(M, straight_through=True), ValueError, "straight_through needs a statistic"),
        (lambda: ChannelGate(k=3, max_channels=3), ValueError, "max_channels goes with threshold and compact"),
        (
            lambda: ChannelGate(threshold=0.0, max_channels=3),
            ValueError,
            "max_channels goes with threshold and compact",
        ),
        (
            lambda: ChannelGate(threshold=0.0, compact=True, max_channels=-3),
            ValueError,
            "max_channels must be at least",
        ),
        (lambda: ChannelGate(k=3).set_mask(M), ValueError, "it has no mask to set"),
        (
            lambda: ChannelGate(k=C + 1)(X),
            ValueError,
            r"k is 13, but input has 12 channels: float32 tensor \[5, 12, 2\]",
        ),
        (lambda: ChannelGate(k=3)(X.int()), TypeError, "input must be float32.*got int32"),
        (lambda: ChannelGate(k=3)(X[0, 0]), ValueError, r"input must have shape \[N, C, ...\]"),
        (lambda: ChannelGate(k=3)([1.0]), TypeError, "input must be a tensor, got list"),
        (lambda: ChannelGate(M)(X[:, :3]), ValueError, r"input must have shape \[N, 12, ...\] for mask, got float32"),
        (lambda: ChannelGate(M)([1.0]), TypeError, "input must be a tensor, got list"),
        (lambda: ChannelGate(M).active(X[:, :3]), ValueError, r"input must have shape \[N, 12, ...\]"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
