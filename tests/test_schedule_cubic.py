"""CubicSchedule: how many weights are masked when, and which."""

from __future__ import annotations

import pytest
import torch
from maskfuse import Mask, protect
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import CubicSchedule
from schedules import NUMEL, TOTAL, masked_layers, network, under_masks
from torch import nn, optim

BUDGETS = ["uniform", "erk", "global"]


@pytest.fixture
def model():
    return network()


@pytest.fixture
def optimizer(model):
    return optim.SGD(model.parameters(), 1e-3)


def linear(*shapes):
    return nn.Sequential(*(MaskedLinear(i, o, bias=False) for o, i in shapes))


def moved(model):
    """New weights, as an optimizer's step may leave them."""
    with torch.no_grad():
        for layer in masked_layers(model):
            layer.weight.normal_().masked_fill_(~layer.mask.dense(), 0)


def test_the_density_is_the_papers(model, optimizer):
    schedule = CubicSchedule(model, optimizer, 0.1, begin=100, end=300, initial_density=0.9)
    assert [schedule.density_at(t) for t in (0, 100)] == [0.9, 0.9]
    assert schedule.density_at(150) == pytest.approx(0.1 + 0.8 * 27 / 64)
    assert schedule.density_at(200) == pytest.approx(0.1 + 0.8 / 8)
    assert [schedule.density_at(t) for t in (300, 1000)] == [0.1, 0.1]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("begin", "dense"), [(0, ()), (4, ()), (4, ["7"])])
def test_counts_are_exact_and_hold_past_the_end(model, optimizer, budget, begin, dense):
    schedule = CubicSchedule(model, optimizer, 0.15, begin=begin, end=20, interval=3, budget=budget, dense=dense)
    total, masks = TOTAL, [layer.mask for layer in masked_layers(model)]
    times = [*range(begin, 20, 3), 20]
    for t in range(1, 40):
        moved(model)
        changed = schedule.step()
        assert schedule.steps == t
        if t in times:
            total = round(schedule.density_at(t) * TOTAL)
        assert sum(schedule.active.values()) == total and schedule.density == total / TOTAL
        after = [layer.mask for layer in masked_layers(model)]
        assert changed == (after != masks) == (t in times and t > begin)
        assert all(old & new == new for old, new in zip(masks, after, strict=True))
        assert changed or all(old is new for old, new in zip(masks, after, strict=True))
        masks = after
        assert not under_masks(model).any()
        if dense:
            assert schedule.active["7"] == NUMEL["7"]
    assert total == round(0.15 * TOTAL)


def test_budgets_of_layers(model, optimizer):
    """Worked by hand: 0.25 of 976 are 244."""
    wanted = {
        "uniform": {"0": 27, "2": 27, "4": 180, "7": 10},
        # In proportion to 14, 13, 56, 13 with 40 as the last one's limit: 244 * 13 / 96 = 33.04.
        "erk": {"0": 36, "2": 33, "4": 142, "7": 33},
    }
    for budget, want in wanted.items():
        fresh = network()
        schedule = CubicSchedule(fresh, optim.SGD(fresh.parameters(), 0.1), 0.25, end=1, budget=budget)
        schedule.step()
        assert schedule.active == want
    schedule = CubicSchedule(model, optimizer, 0.25, end=1, budget="global")
    weights = torch.cat([layer.weight.detach().flatten() for layer in masked_layers(model)])
    schedule.step()
    masks = torch.cat([layer.mask.dense().flatten() for layer in masked_layers(model)])
    assert torch.equal(masks, Mask.topk(weights.abs(), 0.25).dense())


@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_the_largest_of_each_layer_stay_ties_by_index(budget):
    model = linear((2, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -3.0, 2.0, 2.0], [-2.0, 0.0, 0.5, 2.0]]))
    CubicSchedule(model, optim.SGD(model.parameters(), 0.1), 0.5, end=1, budget=budget).step()
    assert model[0].mask.dense().tolist() == [[False, True, True, True], [True, False, False, False]]


def test_masked_weights_stay_masked_though_active_ones_are_zero():
    model = linear((1, 6))
    model[0].set_mask(torch.tensor([[False, True, True, True, True, False]]))
    with torch.no_grad():
        model[0].weight.zero_()
    schedule = CubicSchedule(model, optim.SGD(model.parameters(), 0.1), 0.5, end=4, interval=1)
    totals = []
    for _ in range(4):
        schedule.step()
        totals.append(model[0].mask.active)
    assert totals == [4, 3, 3, 3]
    assert model[0].mask.dense().tolist() == [[False, True, True, True, False, False]]


def test_layers_below_their_share_keep_it_and_others_get_the_rest():
    model = linear((4, 5), (4, 4), (5, 4))
    model[0].set_mask(torch.arange(20).reshape(4, 5) < 3)
    schedule = CubicSchedule(model, optim.SGD(model.parameters(), 0.1), 0.5, end=1)
    schedule.step()
    assert schedule.active == {"0": 3, "1": 11, "2": 14}  # 28 of 56; 25 in proportion to 16 and 20


def test_retained_values_come_back_where_they_are_larger():
    model = linear((1, 4))
    optimizer = protect(optim.SGD(model.parameters(), 0.1), model)
    schedule = CubicSchedule(model, optimizer, 0.5, end=2, interval=1, initial_density=0.5, retain=True)
    for active, masked in (([1.0, 3.0, 2.0, 4.0], [False, True, False, True]), ([1.0, 0.1, 2.0, 4.0], None)):
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([active]))
        assert schedule.step()
        assert model[0].mask.dense().tolist()[0] == (masked or [False, False, True, True])
        assert model[0].weight.tolist()[0] == pytest.approx(active)
