"""Schedules of models with compact layers: the masks, weights and updates of the masked twins."""

from __future__ import annotations

import copy

import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import CompactLinear, MaskedLinear
from maskfuse.nn._masked import MaskedLayer
from maskfuse.nn._with_mask import LayerWithMask
from maskfuse.schedule import SET, CubicSchedule, RigL
from schedules import NUMEL, TOTAL, network, step
from torch import nn, optim

SCHEDULES = {
    "cubic": lambda m, o: CubicSchedule(m, o, 0.1, end=8, interval=2, budget="global"),
    "SET": lambda m, o: SET(m, o, 0.2, end=9, interval=2, generator=torch.Generator().manual_seed(0)),
    "RigL": lambda m, o: RigL(m, o, 0.2, end=9, interval=2, generator=torch.Generator().manual_seed(0)),
}
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
}


def compacted(model):
    """The model with compact layers in place of masked ones."""
    return nn.Sequential(*[m.to_compact() if isinstance(m, MaskedLayer) else copy.deepcopy(m) for m in model])


def layers(model):
    return [m for m in model if isinstance(m, LayerWithMask)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trains_as_the_masked_twin(schedule, optimizer):
    """Bit for bit, with every optimizer's state moved with its weight."""
    masked = network()
    compact = compacted(masked)
    runs = []
    for model in (masked, compact):
        opt = OPTIMIZERS[optimizer](model.parameters())
        runs.append((model, opt, SCHEDULES[schedule](model, opt)))
    for t in range(10):
        changed = [step(*run, torch.Generator().manual_seed(t)) for run in runs]
        assert changed[0] == changed[1]
        for ours, theirs in zip(layers(compact), layers(masked), strict=True):
            assert ours.mask == theirs.mask and torch.equal(ours.weight, theirs.weight), t
            assert ours.values.shape == (ours.mask.active,)
        assert runs[0][2].active == runs[1][2].active
    assert runs[1][2].density == (0.1 if schedule == "cubic" else 0.2) or abs(runs[1][2].density - 0.15) < 0.06


def test_counts_and_resuming():
    model = compacted(network())
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = SET(model, optimizer, 0.2, end=9, interval=1, generator=torch.Generator().manual_seed(0))
    assert list(schedule.active) == list(NUMEL) and sum(schedule.active.values()) == round(0.2 * TOTAL)
    for t in range(3):
        step(model, optimizer, schedule, torch.Generator().manual_seed(t))
    saved = copy.deepcopy([one.state_dict() for one in (model, optimizer, schedule)])
    again = compacted(network())
    other = optim.SGD(again.parameters(), 0.05, momentum=0.9)
    again.load_state_dict(saved[0])
    resumed = SET(again, other, 0.2, end=9, interval=1, generator=torch.Generator())
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    for t in range(3, 7):
        step(model, optimizer, schedule, torch.Generator().manual_seed(t))
        step(again, other, resumed, torch.Generator().manual_seed(t))
    for ours, theirs in zip(layers(again), layers(model), strict=True):
        assert ours.mask == theirs.mask and torch.equal(ours.values, theirs.values)


def test_shared_values_are_masked_alike():
    first = CompactLinear(8, 8, bias=False)
    second = CompactLinear(8, 8, bias=False)
    second.values = first.values
    model = nn.Sequential(first, nn.ReLU(), second)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = CubicSchedule(model, optimizer, 0.25, end=2, interval=1)
    assert schedule.active == {"0": 64}
    for _ in range(2):
        model(torch.randn(3, 8)).pow(2).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert first.mask is second.mask and first.values is second.values and first.values.shape == (16,)
    assert optimizer.state[first.values]["momentum_buffer"].shape == (16,)


def test_what_compact_layers_cannot_do():
    model = compacted(network())
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"retain must be False for compact layers.*'0', '2', '4', '7'"):
        CubicSchedule(model, optimizer, 0.1, end=2, retain=True)
    with pytest.raises(ValueError, match="is to stay dense"):
        model[4].set_mask(Mask.random((20, 36), 0.5))
        CubicSchedule(model, optimizer, 0.1, end=2, dense=["4"])
    lonely = nn.Sequential(CompactLinear(8, 8))
    with pytest.raises(ValueError, match="and has none"):
        SET(lonely, optimizer, 0.1, end=2)
    lbfgs = optim.LBFGS(lonely.parameters())
    with pytest.raises(TypeError, match="LBFGS"):
        SET(lonely, lbfgs, 0.1, end=2)


def test_masked_and_compact_together():
    model = nn.Sequential(CompactLinear(8, 8), MaskedLinear(8, 8), CompactLinear(8, 4))
    optimizer = optim.Adam(model.parameters(), 0.01)
    schedule = CubicSchedule(model, optimizer, 0.25, end=2, interval=1, budget="global", dense=["2"])
    for _ in range(2):
        model(torch.randn(3, 8)).pow(2).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert sum(schedule.active.values()) == 40 and schedule.active["2"] == 32
    assert model[2].values.shape == (32,) and model[0].values.shape == (schedule.active["0"],)
