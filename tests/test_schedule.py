"""What all schedules share: selection, order, optimizers' state, resuming, memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from copies import through_a_file
from maskfuse import Mask, protect
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import SET, CubicSchedule, RigL
from optimizers import ELEMENTWISE, made, same_bits
from schedules import masked_layers, network, recording, step, under_masks
from torch import nn, optim

BUDGETS = ["uniform", "erk", "global"]
KINDS = [CubicSchedule, SET, RigL]


@pytest.fixture
def model():
    return network()


@pytest.fixture
def optimizer(model):
    return optim.SGD(model.parameters(), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [["4", "7"], lambda name, layer: isinstance(layer, MaskedLinear)])
def test_selected_layers_alone_are_masked_and_counted(model, optimizer, kind, layers):
    schedule = kind(model, optimizer, 0.25, end=3, interval=1, layers=layers)
    for _ in range(3):
        step(model, optimizer, schedule)
    assert list(schedule.active) == ["4", "7"] and sum(schedule.active.values()) == 190
    assert model[0].mask.density == model[2].mask.density == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", ["module", "weight"])
def test_shared_layers_count_once_and_are_masked_alike(kind, shared):
    one, other = MaskedLinear(6, 6), MaskedLinear(6, 6)
    if shared == "module":
        other = one
    else:
        other.weight = one.weight
    model = nn.Sequential(one, nn.ReLU(), other, MaskedLinear(6, 4))
    optimizer = optim.SGD(model.parameters(), 0.01)
    schedule = kind(model, optimizer, 0.5, end=4, interval=1, dense=["3"])
    for _ in range(4):
        optimizer.zero_grad()
        with recording(schedule):
            loss = model(torch.randn(3, 6)).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
        assert one.mask == other.mask
    assert schedule.active == {"0": 6, "3": 24}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": nn.Sequential(nn.Linear(2, 2))}, ValueError, "must have masked layers, and has none"),
        ({"model": "model"}, TypeError, "model must be an nn.Module, got str"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer, or several, got NoneType"),
        ({"optimizer": optim.SGD(nn.Linear(2, 2).parameters(), 1)}, ValueError, "SGD of 2 parameters"),
        ({"density": 0.0}, ValueError, "density must be more than 0 and at most 1, got 0.0"),
        ({"density": 1.5}, ValueError, "density must be more than 0 and at most 1, got 1.5"),
        ({"density": float("nan")}, ValueError, "density must be .* got nan"),
        ({"density": 0.5, "dense": ["4"]}, ValueError, "0.5 of 976 weights is 232 less than these have"),
        ({"end": 0}, ValueError, "end must be at least 1, got 0"),
        ({"end": 2.0}, TypeError, "end must be an integer, got 2.0"),
        ({"interval": 0}, ValueError, "interval must be at least 1, got 0"),
        ({"budget": "layer"}, ValueError, "budget must be one of uniform, erk, global, got 'layer'"),
        ({"layers": ["0", "6"]}, ValueError, r"layers must name masked layers, \['0', '2', '4', '7'\]; got \['6'\]"),
        ({"layers": "0"}, TypeError, "layers must be names or a function"),
        ({"layers": []}, ValueError, "layers must select masked layers"),
        ({"dense": lambda name, layer: True, "density": 1.0}, ValueError, "layers must select masked layers"),
    ],
)
def test_bad_arguments(kind, arguments, error, message, model, optimizer):
    arguments = {"model": model, "optimizer": optimizer, "density": 0.5, "end": 10, **arguments}
    with pytest.raises(error, match=message):
        kind(**arguments)
    assert all(layer.mask.density == 1 for layer in masked_layers(model))


def test_other_bad_arguments(model, optimizer):
    model[7].set_mask(Mask.random((5, 8), 0.5))
    with pytest.raises(ValueError, match="layer '7' is to stay dense, and has 20 of 40 weights active"):
        CubicSchedule(model, optimizer, 0.5, end=5, dense=["7"])
    with pytest.raises(ValueError, match="end must be at least 6, got 5"):
        CubicSchedule(model, optimizer, 0.5, begin=5, end=5)
    with pytest.raises(ValueError, match=r"initial_density must be at least density, got 0\.3 and 0\.5"):
        CubicSchedule(model, optimizer, 0.5, end=5, initial_density=0.3)
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"drop_fraction must be in 0\.\.1"):
            RigL(model, optimizer, 0.5, end=5, drop_fraction=value)
    with pytest.raises(ValueError, match="annealing must be cosine or constant, got 'linear'"):
        SET(model, optimizer, 0.5, end=5, annealing="linear")
    twin = MaskedLinear(8, 5)
    twin.weight = model[7].weight
    with pytest.raises(ValueError, match=r"layers '0\.7' and '1' share a weight and must have one mask, got 20 and 40"):
        CubicSchedule(nn.Sequential(model, twin), optimizer, 0.5, end=5)
    nn.utils.parametrizations.weight_norm(model[4])
    with pytest.raises(ValueError, match="the weight of layer '4' must be a parameter"):
        CubicSchedule(model, optimizer, 0.5, end=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_nan_changes_nothing(model, optimizer, kind):
    schedule = kind(model, optimizer, 0.5, end=5, interval=1)
    step(model, optimizer, schedule)
    masks = [layer.mask for layer in masked_layers(model)]
    layer = model[7]
    with torch.no_grad():
        layer.weight[layer.mask.dense()] = float("nan")
    if kind is RigL:
        schedule._dense_gradient_of = lambda one: torch.ones(one.mask.shape)
    with pytest.raises(ValueError, match=r"weight of layer '7' must not contain NaN, got float32 tensor \[5, 8\]"):
        schedule.step()
    assert schedule.steps == 1
    assert all(layer.mask is mask for layer, mask in zip(masked_layers(model), masks, strict=True))


def test_steps_in_the_wrong_order(model, optimizer):
    schedule = CubicSchedule(model, optimizer, 0.5, end=3, interval=1)
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    with pytest.raises(RuntimeError, match=r"CubicSchedule\.step must follow a step of the optimizer"):
        schedule.step()
    assert schedule.steps == 0
    optimizer.step()
    assert schedule.step()
    with pytest.raises(RuntimeError, match="each once"):  # twice for one step
        schedule.step()
    optimizer.zero_grad()
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert schedule.step()


def test_steps_that_a_grad_scaler_skips_count(model, optimizer):
    schedule = CubicSchedule(model, optimizer, 0.5, end=3, interval=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(2, 2, 8, 8)).sum() * factor).backward()
        for p in model.parameters():
            if factor != 1.0 and p.dim() > 1:
                p.grad.zero_()  # what is not finite is in a bias
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    assert schedule.steps == 3 and schedule.density == 0.5


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_state_of_weights_whose_mask_changes_begins_anew(name, kind, protected, recwarn):
    """Whatever the optimizer, masked weights stay zero, grown ones are, and no other weight's state is touched."""
    model = network()
    options = {k: v for k, v in ELEMENTWISE[name][-1].items() if k != "lr"}
    optimizer = made(name, model.parameters(), {**options, "lr": 0.01})
    if protected:
        protect(optimizer, model)
    schedule = kind(model, optimizer, 0.3, end=11, interval=3)
    for t in range(1, 12):
        layers = masked_layers(model)
        masks = [layer.mask.dense() for layer in layers]
        x = torch.randn(8, 2, 8, 8)
        optimizer.zero_grad()
        with recording(schedule):
            loss = (model(x) - 1).pow(2).mean()
        loss.backward()
        optimizer.step()
        states = [
            {
                k: v.clone()
                for k, v in optimizer.state[layer.weight].items()
                if torch.is_tensor(v) and v.shape == layer.weight.shape
            }
            for layer in layers
        ]
        changed = schedule.step()
        assert not under_masks(model).any()
        assert changed == (t % 3 == 0 or (kind is CubicSchedule and t == 11))
        for layer, before, state in zip(layers, masks, states, strict=True):
            flipped = layer.mask.dense() ^ before
            assert not layer.weight[flipped].any()
            for key, value in state.items():
                now = optimizer.state[layer.weight][key]
                assert same_bits(now[~flipped], value[~flipped])
                start = {"step_size": 0.01, "sum": options.get("initial_accumulator_value", 0.0)}.get(key, 0.0)
                assert (now[flipped] == start).all()
    assert all(flags.any() for flags in masks) and not recwarn.list


def test_several_optimizers(model):
    """Muon for the linear layers, AdamW for the others, as people use it."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizers = [optim.Muon(matrices, 0.01), optim.AdamW(rest, 0.01)]
    schedule = CubicSchedule(model, optimizers, 0.3, end=2, interval=1)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(8, 2, 8, 8)).pow(2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        schedule.step()
    buffer, moment = optimizers[0].state[model[4].weight], optimizers[1].state[model[0].weight]
    for layer, value in ((model[4], buffer["momentum_buffer"]), (model[0], moment["exp_avg"])):
        assert not value[~layer.mask.dense()].any() and value[layer.mask.dense()].any()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_bitwise(kind, budget):
    def make(density=0.3):
        torch.manual_seed(3)
        model = network()
        optimizer = protect(optim.AdamW(model.parameters(), 0.01, weight_decay=0.1, amsgrad=True), model)
        own = {} if kind is CubicSchedule else {"generator": torch.Generator().manual_seed(5)}
        return model, optimizer, kind(model, optimizer, density, end=20, interval=2, budget=budget, **own)

    straight = make()
    noise = torch.Generator().manual_seed(7)
    for _ in range(9):
        step(*straight, generator=noise)
    saved = through_a_file([part.state_dict() for part in straight], weights_only=True)
    position = noise.get_state()
    for _ in range(9):
        step(*straight, generator=noise)
    resumed = make()
    torch.manual_seed(99)  # nothing is drawn from torch's own generator
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    noise.set_state(position)
    changes = [step(*resumed, generator=noise) for _ in range(9)]
    assert changes == [True, False] * 4 + [True]
    for p, q in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert same_bits(p, q)
    for a, b in zip(masked_layers(straight[0]), masked_layers(resumed[0]), strict=True):
        assert a.mask == b.mask and a.mask.active
    assert straight[2].state_dict().keys() == resumed[2].state_dict().keys()


def test_state_of_another_schedule_is_refused(model, optimizer):
    state = CubicSchedule(model, optimizer, 0.5, end=5).state_dict()
    with pytest.raises(ValueError, match="state_dict must be of schedule SET, got CubicSchedule"):
        SET(model, optimizer, 0.5, end=5).load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict must be of layers"):
        CubicSchedule(model, optimizer, 0.5, end=5, layers=["0"]).load_state_dict(state)
    generator = torch.Generator()
    state = SET(model, optimizer, 0.5, end=5).state_dict()
    with pytest.raises(ValueError, match="state_dict must be of a schedule with a generator"):
        SET(model, optimizer, 0.5, end=5, generator=generator).load_state_dict(state)


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_old_masks_and_plans_are_freed(kind, protected):
    """Of 40 changes the last mask and its plan are all that is left, without a garbage collection."""
    model = nn.Sequential(MaskedLinear(80, 64), nn.ReLU(), MaskedLinear(64, 70))  # large enough for a plan
    optimizer = optim.Adam(model.parameters(), 0.01)
    if protected:
        protect(optimizer, model)
    schedule = kind(model, optimizer, 0.3, end=1000, interval=1)
    seen = weakref.WeakSet()
    gc.collect()
    gc.disable()
    try:
        for _ in range(40):
            optimizer.zero_grad()
            with recording(schedule):
                loss = model(torch.randn(4, 80)).pow(2).sum()
            loss.backward()
            optimizer.step()
            assert schedule.step()
            for layer in model[::2]:
                assert len(layer.mask.plan) == 2
                seen.update([layer.mask.bits, *layer.mask.plan])
        assert len(seen) > 6 or not protected  # a protected optimizer knows the last masks until its next step
        del loss
        optimizer.zero_grad()
        model(torch.randn(4, 80)).sum().backward()
        optimizer.step()
        current = {id(t) for layer in model[::2] for t in (layer.mask.bits, *layer.mask.plan)}
        assert {id(t) for t in seen} == current and len(current) == 6
    finally:
        gc.enable()
