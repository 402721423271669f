"""A whole model used wrongly, from `convert` to `fold`: each mistake is answered, and leaves the model as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from maskfuse import Mask, Policy, convert, fold, protect
from maskfuse.nn import MaskedConv2d, MaskedLinear
from maskfuse.schedule import SET, CubicSchedule, RigL
from schedules import masked_layers, step
from torch import nn, optim


def network():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 20), nn.ReLU(), nn.Linear(20, 5)
    )


@pytest.fixture
def model():
    return convert(network(), Policy(exclude="5", density=0.5))


def state_of(model):
    return copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]


def assert_unchanged(model, state):
    tensors, types = state
    now = model.state_dict()
    assert [type(module) for module in model.modules()] == types and now.keys() == tensors.keys()
    assert all(torch.equal(now[key], tensors[key]) for key in now)


@pytest.mark.parametrize(
    "policy", [Policy(names="encoder.*", density=0.1), {"encoder.*": 0.1}, Policy(min_weights=9999)]
)
def test_a_policy_that_matches_nothing(policy):
    model = network()
    before = state_of(model)
    with pytest.warns(UserWarning, match=r"matches no layer of model \(Sequential\).*\['0', '3', '5'\]"):
        assert convert(model, policy) is model
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", [CubicSchedule, SET, RigL])
def test_a_schedule_past_its_end(kind, model):
    """It goes on counting, changes nothing, and asks for nothing; so does one that is loaded past its end."""
    optimizer = protect(optim.AdamW(model.parameters(), 1e-2), model)
    schedule = kind(model, optimizer, 0.2, end=4, interval=1)
    changes = [step(model, optimizer, schedule) for _ in range(10)]
    assert any(changes[:4]) and not any(changes[4:])
    layers = masked_layers(model)
    masks = [layer.mask for layer in layers]
    assert sum(mask.active for mask in masks) == round(0.2 * sum(mask.numel for mask in masks))
    before = [layer.weight.detach().clone() for layer in layers]
    again = copy.deepcopy(schedule.state_dict())
    schedule.load_state_dict(again)
    assert not any(step(model, optimizer, schedule) for _ in range(3))
    assert [layer.mask for layer in layers] == masks and schedule.state_dict()["step"] == 13
    assert all(not torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (Mask.full((384, 20)), ValueError, r"\[20, 384\], got \[384, 20\]"),
        (torch.ones(20, dtype=torch.bool), ValueError, r"\[20, 384\], got \[20\]"),
        (torch.ones(20, 384), TypeError, "floating tensor"),
        (torch.full((20, 384), 2), ValueError, "0 or 1"),
    ],
)
def test_a_mask_of_the_wrong_shape_or_kind(mask, error, message, model):
    before = state_of(model)
    with pytest.raises(error, match=message):
        model[3].set_mask(mask)
    assert_unchanged(model, before)
    plain = network()
    before = state_of(plain)
    with pytest.raises(error, match=rf"layer '3'.*{message}"):
        convert(plain, {"0": 0.5, "3": mask})
    assert_unchanged(plain, before)
    state = model.state_dict()
    state["3.mask_bits"] = state["3.mask_bits"][:, :3]
    with pytest.raises(RuntimeError, match=r"3.mask_bits: bits must have shape \[20, 12\] .* got \[20, 3\]"):
        model.load_state_dict(state)


def test_a_folded_model_that_is_folded_again(model):
    optimizer = protect(optim.SGD(model.parameters(), 0.1), model)
    schedule = CubicSchedule(model, optimizer, 0.1, end=9, initial_density=0.5)
    fold(model)
    before = state_of(model)
    with pytest.warns(UserWarning, match=r"model \(Sequential\) has no masked layers.*folded before"):
        assert fold(model) is model
    assert_unchanged(model, before)
    with pytest.raises(ValueError, match="must have masked layers, and has none"):
        CubicSchedule(model, optimizer, 0.1, end=9)
    with pytest.raises(RuntimeError, match=r"layer '0' \(Conv2d\) is masked no more: the model was folded"):
        step(model, optimizer, schedule)


@pytest.mark.parametrize("protected", [False, True])
def test_an_unprotected_optimizer_over_masked_layers(protected):
    """Momentum from before the masks moves weights under them: said once, at the next step, and kept by protect."""
    model = network()
    optimizer = optim.AdamW(model.parameters(), 1e-2)

    def train():
        optimizer.zero_grad()
        model(torch.randn(4, 2, 8, 8)).square().mean().backward()
        optimizer.step()

    train()
    convert(model, 0.2)
    if protected:
        protect(optimizer, model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train()
    else:
        with pytest.warns(UserWarning, match=r"AdamW has momentum.*maskfuse.protect\(optimizer, model\)") as caught:
            train()
        assert len(caught) == 3 and all(warning.filename == __file__ for warning in caught)  # one a mask
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train()
    for layer in model:
        if isinstance(layer, (MaskedConv2d, MaskedLinear)):
            assert bool(layer.weight[~layer.mask.dense()].any()) is not protected
