"""A compact layer's mask changes: values, gradients, every optimizer's state, graphs, hooks, and what is refused."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
import torch._dynamo.testing
from compact import made as pair
from compact import random_mask
from maskfuse import Mask
from maskfuse.nn import CompactLinear, MaskedLinear, freeze, frozen_mask
from maskfuse.nn._optimizer_state import beginning
from optimizers import ELEMENTWISE, made, takes
from torch import nn, optim

CASES = [(name, options) for name, many in ELEMENTWISE.items() for options in many if takes(name, options)]


def step(layer, optimizer, x, zero=True):
    if zero:
        optimizer.zero_grad()
    layer(x).pow(2).sum().backward()
    optimizer.step()


def in_full(t, mask, fill=0.0):
    return torch.full(mask.shape, fill, dtype=t.dtype).masked_scatter(mask.dense(), t)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["linear", "conv groups"])
def test_state_moves_with_the_weights(name, options, kind):
    layer, x = pair(kind)
    layer = layer.to_compact()
    optimizer = made(name, layer.parameters(), options)
    for _ in range(3):
        step(layer, optimizer, x)
    old, new = layer.mask, random_mask(layer, 0.5)
    values, grad = layer.values.detach().clone(), layer.values.grad.clone()
    before = copy.deepcopy(optimizer.state[layer.values])
    parameter, bias_state = layer.values, copy.deepcopy(optimizer.state[layer.bias])
    layer.set_mask(new, optimizer)
    assert layer.values is parameter and layer.mask == new and parameter.is_leaf and parameter.requires_grad
    both = old & new
    for now, then in ((layer.values.detach(), values), (layer.values.grad, grad)):
        assert now.shape == (new.active,)
        assert torch.equal(in_full(now, new), torch.where(both.dense(), in_full(then, old), 0))
    state = optimizer.state[layer.values]
    assert list(state) == list(before)
    moved = 0
    for key, then in before.items():
        if isinstance(then, torch.Tensor) and then.shape == values.shape:
            moved += 1
            fill = beginning(optimizer, layer.values, key)
            expected = torch.where(both.dense(), in_full(then, old), torch.tensor(fill, dtype=then.dtype))
            assert torch.equal(state[key], expected[new.dense()]), key
        elif isinstance(then, torch.Tensor):
            assert torch.equal(state[key], then), key
        else:
            assert state[key] == then, key
    assert moved or not any(isinstance(v, torch.Tensor) and v.numel() > 1 for v in before.values())
    for key, value in bias_state.items():
        assert torch.equal(torch.as_tensor(optimizer.state[layer.bias][key]), torch.as_tensor(value))
    for _ in range(2):
        step(layer, optimizer, x)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_trains_as_the_masked_twin(name):
    """Through masks that shrink and grow, bit for bit: what grows is zero, with no history, in both."""
    masked, x = pair("linear")
    compact = masked.to_compact()
    options = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
    ours, theirs = made(name, compact.parameters(), options), made(name, masked.parameters(), options)
    for t in range(6):
        step(compact, ours, x)
        step(masked, theirs, x)
        if t % 2:
            mask = random_mask(masked, 0.3)
            changed = mask.dense() ^ masked.mask.dense()
            compact.set_mask(mask, ours)
            masked.set_mask(mask)
            for key, value in theirs.state[masked.weight].items():
                if value.shape == masked.weight.shape:
                    theirs.state[masked.weight][key] = value.masked_fill(changed, 0)
        assert torch.equal(compact.weight, masked.weight), t


def test_graphs_gradients_and_hooks():
    """A loss of before may be alive; hooks stay; what was asked for no gradient gets none."""
    layer = CompactLinear(40, 6)
    x = torch.randn(3, 40)
    seen, accumulated = [], []
    layer.values.register_hook(lambda g: seen.append(g.shape[0]))
    layer.values.register_post_accumulate_grad_hook(lambda p: accumulated.append(p.grad.shape[0]))
    kept = []
    for active in (240, 100, 7, 180):
        if active < 240:
            layer.set_mask(random_mask(layer, active / 240))
        loss = layer(x).pow(2).sum()
        loss.backward()
        kept.append(loss)  # with its graph
        assert layer.values.grad.shape == (active,)
    assert seen == accumulated == [240, 100, 7, 180]
    layer.values.requires_grad_(False)
    layer.set_mask(random_mask(layer, 0.1))
    assert not layer.values.requires_grad
    half = CompactLinear(40, 6, dtype=torch.bfloat16)
    half.set_mask(random_mask(half, 0.5))
    assert half.values.dtype == torch.bfloat16
    double = CompactLinear(40, 6, dtype=torch.float64)
    double(x.double()).sum().backward()
    double.set_mask(random_mask(double, 0.5))
    double(x.double()).sum().backward()
    assert double.values.dtype == double.values.grad.dtype == torch.float64


def test_graphs_of_before_have_no_backward_pass():
    """Where they have saved the values, for the input's gradient."""
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    loss = layer(torch.randn(3, 40, requires_grad=True)).sum()
    layer.set_mask(random_mask(layer, 0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_same_mask_changes_nothing():
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    before = layer.values.detach().clone()
    layer.set_mask(layer.mask.dense())
    assert torch.equal(layer.values, before)
    full = CompactLinear(40, 6)
    values = full.values.detach().clone()
    full.set_mask(Mask.full((6, 40), active=False))
    assert full.values.shape == (0,) and torch.equal(full(torch.zeros(1, 40))[0], full.bias)
    full.set_mask(Mask.full((6, 40)))
    assert full.values.shape == values.shape and not full.values.any()


def test_several_optimizers_and_groups():
    layer = CompactLinear(40, 6)
    x = torch.randn(3, 40)
    first = optim.SGD([{"params": [layer.bias], "lr": 0.1}, {"params": [layer.values], "lr": 0.01}], momentum=0.9)
    second = optim.Rprop([layer.values], lr=0.05)
    step(layer, first, x)
    step(layer, second, x)
    layer.set_mask(Mask.random((6, 40), 0.5), [first, second])
    kept = layer.mask.dense()
    for optimizer in (first, second):
        step(layer, optimizer, x)
    layer.set_mask(Mask.full((6, 40)), (first, second))
    for optimizer, key, fill in ((first, "momentum_buffer", 0.0), (second, "step_size", 0.05)):
        state = optimizer.state[layer.values][key].reshape(6, 40)
        assert (state[~kept] == fill).all() and (state[kept] != fill).any()


def test_optimizers_that_were_forgotten_are_refused():
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    x = torch.randn(3, 40)
    optimizer = optim.Adam(layer.parameters())
    layer.set_mask(random_mask(layer, 0.5))  # no state yet: nothing to map
    step(layer, optimizer, x)
    layer.set_mask(random_mask(layer, 0.5))  # as many weights: torch would take the state for theirs
    before = layer.values.detach().clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Adam has state of the weights that were active before"):
            step(layer, optimizer, x)
    with pytest.raises(RuntimeError, match="Adam has state"):
        layer.set_mask(random_mask(layer, 0.5), optimizer)  # too late
    assert torch.equal(layer.values, before)
    other = optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    other.step()  # of others
    del optimizer.state[layer.values]
    step(layer, optimizer, x)
    step(layer, optimizer, x)
    layer.set_mask(random_mask(layer, 0.5), optimizer)
    step(layer, optimizer, x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda layer: optim.SGD([nn.Parameter(torch.ones(2))], 0.1), ValueError, "SGD.* must have the values"),
        (lambda layer: optim.LBFGS(layer.parameters()), TypeError, "LBFGS"),
        (lambda layer: "Adam", TypeError, "optimizer must be a torch.optim.Optimizer, or several, got str"),
        (lambda layer: 3, TypeError, "got int"),
        (lambda layer: [optim.SGD(layer.parameters(), 0.1), layer], TypeError, "got CompactLinear"),
        (lambda layer: with_state(layer, rows=torch.ones(6)), ValueError, r"'rows': \[6\]"),
        (lambda layer: with_state(layer, history=[torch.ones(120)]), ValueError, "'history': list"),
    ],
)
def test_bad_optimizers_change_nothing(make, error, message):
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    mask, values = layer.mask, layer.values.detach().clone()
    optimizer = make(layer)
    with pytest.raises(error, match=message):
        layer.set_mask(Mask.full((6, 40)), optimizer)
    assert layer.mask == mask and torch.equal(layer.values, values)


def with_state(layer, **state):
    optimizer = optim.SGD(layer.parameters(), 0.1)
    optimizer.state[layer.values] = state
    return optimizer


def test_compiled_layers():
    """Compiled for each number of active weights, or once for all of them where torch is told so."""
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    x = torch.randn(3, 40)
    for static, frames in ((True, 4), (False, 2)):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        with torch._dynamo.config.patch(force_parameter_static_shapes=static):
            compiled = torch.compile(layer, fullgraph=True, backend=counter)
            for active in (120, 100, 80, 80, 60):
                layer.set_mask(random_mask(layer, active / 240))
                torch.testing.assert_close(compiled(x), layer(x))
        assert counter.frame_count == frames


def test_resumes(tmp_path):
    """Model and optimizer are saved and loaded as ever, at whatever size the values have."""
    x = torch.randn(3, 40)
    layer = CompactLinear(40, 6)
    optimizer = optim.Adam(layer.parameters(), 0.01)
    step(layer, optimizer, x)
    layer.set_mask(Mask.random((6, 40), 0.2), optimizer)
    step(layer, optimizer, x)
    torch.save([layer.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    other = CompactLinear(40, 6)
    others = optim.Adam(other.parameters(), 0.01)
    step(other, others, x)
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(states[0])
    others.load_state_dict(states[1])
    for _ in range(3):
        step(layer, optimizer, x)
        step(other, others, x)
    assert torch.equal(layer.values, other.values)


def test_protect_has_nothing_to_do():
    model = nn.Sequential(CompactLinear(40, 30, mask=Mask.random((30, 40), 0.5)), MaskedLinear(30, 6))
    optimizer = maskfuse.protect(optim.AdamW(model.parameters(), weight_decay=0.1), model)
    step(model, optimizer, torch.randn(3, 40))
    model[0].set_mask(random_mask(model[0], 0.4), optimizer)
    step(model, optimizer, torch.randn(3, 40))
    again = copy.deepcopy(model)
    assert again[0].mask is model[0].mask


@pytest.mark.parametrize("load", [False, True])
def test_frozen_values_stay_frozen_with_their_weights(load):
    """Their mask was of the number of values from before, and the next backward pass failed."""
    layer = CompactLinear(8, 8, mask=Mask.random((8, 8), 0.4))
    freeze(layer.values, torch.arange(layer.mask.active) % 2 == 0)
    old, new = layer.mask.dense(), Mask.random((8, 8), 0.6)
    frozen = torch.zeros(8, 8, dtype=torch.bool)
    frozen[old] = torch.arange(layer.mask.active) % 2 == 1
    if load:
        layer.load_state_dict(CompactLinear(8, 8, mask=new).state_dict())
    else:
        layer.set_mask(new)
    assert torch.equal(frozen_mask(layer.values).dense(), ~frozen[new.dense()])
    layer(torch.randn(3, 8)).pow(2).sum().backward()
    assert torch.equal(layer.values.grad == 0, frozen[new.dense()])
    weight = maskfuse.fold(layer).weight
    assert torch.equal(frozen_mask(weight).dense(), ~(frozen & new.dense()))


def test_values_that_are_computed_from_others():
    """Those of another mask were put in their place, and the next call computed them again, of the old size."""
    layer = CompactLinear(8, 8, mask=Mask.random((8, 8), 0.4))
    nn.utils.prune.l1_unstructured(layer, "values", 0.5)
    mask = layer.mask
    with pytest.raises(ValueError, match="the values of a layer must be a parameter when its mask is set"):
        layer.set_mask(Mask.full((8, 8)))
    assert layer.mask is mask and layer(torch.randn(2, 8)).shape == (2, 8)
