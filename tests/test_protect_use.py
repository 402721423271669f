"""protect in use: what it looks up, stores and leaves alone."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from maskfuse import Mask, is_protected, protect
from maskfuse.nn import MaskedLinear, freeze
from optimizers import same_bits, trained
from protected import layer as layer
from protected import mask as mask
from protected import optimizer as optimizer
from protected import under
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode


def test_returns_the_optimizer_and_is_idempotent(layer, optimizer, mask):
    assert not is_protected(optimizer, layer)
    assert protect(optimizer, layer) is optimizer and protect(optimizer, layer) is optimizer
    assert is_protected(optimizer, layer) and not is_protected(optimizer, nn.Sequential(layer))
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1
    assert len(optimizer._maskfuse_protection.models) == 1
    layer.set_mask(mask)
    trained(layer, optimizer)
    assert not under(layer).any()


def test_masks_may_change_between_steps(layer, optimizer, mask):
    protect(optimizer, layer)
    for new, retain in ((mask, False), (~mask, False), (mask, True), (mask & ~mask, True), (mask | ~mask, False)):
        layer.set_mask(new, retain=retain)
        before = layer.weight.detach().clone()
        trained(layer, optimizer)
        assert same_bits(under(layer), before[~new.dense()])
        assert not new.active or not same_bits(layer.weight, before)
    assert layer.weight.all()


@pytest.mark.parametrize("value", [-0.0, 3.0, float("nan"), float("-inf")])
def test_what_was_written_under_the_mask_by_hand_stays(layer, optimizer, mask, value):
    """Zeros are not stored, and what is no zero is noticed, before the first step and between steps."""
    protect(optimizer, layer)
    layer.set_mask(mask)
    for _ in range(2):
        trained(layer, optimizer, 1)
        with torch.no_grad():
            layer.weight.masked_fill_(~mask.dense(), value)
        before = layer.weight.detach().clone()
        trained(layer, optimizer, 2)
        assert same_bits(under(layer), before[~mask.dense()])
        layer.set_mask(mask)


class Counted(TorchDispatchMode):
    """Counts copies of tensors of a size."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten.clone.default and args[0].numel() == self.numel
        return result


def test_zeros_are_not_stored(layer, mask):
    optimizer = protect(optim.SGD(layer.parameters(), 0.1, momentum=0.9), layer)
    trained(layer, optimizer)
    for retain, copies in ((False, 0), (True, 1)):
        layer.set_mask(mask, retain=retain)
        layer(torch.randn(8, 9)).sum().backward()
        with Counted(63) as counted:
            optimizer.step()
        assert counted.count == copies


def test_parameters_added_later(mask):
    first, second = MaskedLinear(9, 7), MaskedLinear(9, 7)
    model = nn.ModuleList([first, second])
    optimizer = protect(optim.SGD(first.parameters(), 0.1, momentum=0.9), model)
    optimizer.add_param_group({"params": list(second.parameters()), "weight_decay": 0.1})
    trained(second, optimizer)
    second.set_mask(mask)
    trained(second, optimizer)
    assert not under(second).any() and second.weight.any()
    third = MaskedLinear(9, 7)
    model.append(third)
    optimizer.add_param_group({"params": list(third.parameters())})
    trained(third, optimizer)
    third.set_mask(mask)
    trained(third, optimizer)
    assert not under(third).any()


def test_shared_weights(mask):
    """What one of the layers uses is trained; what all of them mask stays."""
    one, two, plain = MaskedLinear(9, 7), MaskedLinear(9, 7), nn.Linear(9, 7)
    two.weight = plain.weight = one.weight
    model = nn.ModuleList([one, two, plain])
    optimizer = protect(optim.Adam(model.parameters(), 0.05), model)

    def step():
        optimizer.zero_grad()
        sum(m(torch.ones(2, 9)).pow(2).sum() for m in model).backward()
        optimizer.step()

    step()
    other = Mask.random((7, 9), 0.5)
    one.set_mask(mask, retain=True)
    two.set_mask(other, retain=True)
    before, kept = one.weight.detach().clone(), ~(mask | other).dense()
    for _ in range(3):
        step()
    assert kept.any() and same_bits(one.weight[kept], before[kept])
    assert not (one.weight == before)[~kept].any()
    freeze(one.weight, other)  # the parameter itself is frozen, for all that read it
    before = one.weight.detach().clone()
    step()
    assert same_bits(one.weight[~other.dense()], before[~other.dense()])
    assert not (one.weight == before)[(other).dense()].any()


def test_a_frozen_weight_of_a_masked_layer(layer, optimizer, mask):
    protect(optimizer, layer)
    frozen = Mask.random((7, 9), 0.5)
    layer.set_mask(mask)
    freeze(layer.weight, frozen)
    before = layer.weight.detach().clone()
    trained(layer, optimizer)
    active = (mask & frozen).dense()
    assert same_bits(layer.weight[~active], before[~active]) and not (layer.weight == before)[active].any()


def test_frozen_parameters_outside_of_the_model(layer, mask):
    loose = freeze(nn.Parameter(torch.randn(7, 9)), mask)
    optimizer = protect(optim.SGD([*layer.parameters(), loose], 0.1, weight_decay=0.1), layer)
    before = loose.detach().clone()
    loose.grad = torch.ones(7, 9)
    optimizer.step()
    assert same_bits(loose[~mask.dense()], before[~mask.dense()]) and not same_bits(loose, before)


def test_two_models_with_one_optimizer(mask):
    models = [MaskedLinear(9, 7), MaskedLinear(9, 7)]
    optimizer = optim.Adam([p for m in models for p in m.parameters()], 0.05)
    for model in models:
        trained(model, optimizer, 1)
        model.set_mask(mask)
        protect(optimizer, model)
    for model in models:
        trained(model, optimizer)
    assert not any(under(m).any() for m in models)
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_gradients_that_are_missing(layer, optimizer, mask):
    protect(optimizer, layer)
    layer.set_mask(mask)
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert same_bits(layer.weight, before)


def test_expanded_gradients(layer, optimizer, mask):
    protect(optimizer, layer)
    layer.set_mask(mask)
    layer.weight.grad = torch.ones(()).expand(7, 9)
    optimizer.step()
    assert not under(layer).any() and torch.equal(layer.weight.grad, mask.dense().float())


def test_gradients_are_masked_in_their_memory(layer, mask):
    """Buckets of DDP and captured graphs hold on to it."""
    optimizer = protect(optim.SGD(layer.parameters(), 0.1), layer)
    layer.set_mask(mask)
    grad = layer.weight.grad = torch.full((7, 9), float("nan"))
    optimizer.step()
    assert layer.weight.grad is grad and torch.equal(grad.isnan(), mask.dense())


def test_is_public():
    assert maskfuse.protect is protect and {"is_protected", "optim", "protect"} <= set(maskfuse.__all__)
