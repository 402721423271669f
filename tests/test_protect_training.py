"""protect beside what trains: scalers, clipping, accumulation, copies, schedulers, compiled steps."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from copies import COPIES
from maskfuse import Mask, is_protected, protect
from maskfuse.nn import MaskedConv2d, MaskedLinear, freeze
from optimizers import same_bits, take_state, trained
from protected import layer as layer
from protected import mask as mask
from protected import optimizer as optimizer
from protected import under
from torch import nn, optim


@pytest.mark.filterwarnings("ignore:.* moves weights under a mask")  # so the plain one does
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_grad_scaler(layer, mask, options):
    optimizer = optim.Adam(layer.parameters(), 0.05, **options)
    trained(layer, optimizer)
    protect(optimizer, layer)
    twin = copy.deepcopy(layer)
    plain = optim.Adam(twin.parameters(), 0.05, **options)
    take_state(plain, optimizer)
    for masked in (layer, twin):
        masked.set_mask(mask, retain=True)
    before = layer.weight.detach().clone()
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0), torch.amp.GradScaler("cpu", init_scale=64.0)]
    for i in range(6):
        x = torch.randn(8, 9)
        if i == 3:
            x[0, 0] = float("inf")  # this step is skipped
        for model, o, scaler in zip((layer, twin), (optimizer, plain), scalers, strict=True):
            o.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().pow(2).sum()
            scaler.scale(loss).backward()
            at = layer.weight.detach().clone()
            scaler.step(o)
            if i == 3 and model is layer:
                assert same_bits(layer.weight, at)
            scaler.update()
    active = mask.dense()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 32.0
    assert same_bits(layer.weight[~active], before[~active]) and under(layer).any()
    assert same_bits(layer.weight[active], twin.weight[active]) and not same_bits(layer.weight, before)


def test_an_infinite_gradient_under_the_mask_skips_no_step(mask):
    layer = nn.Linear(9, 7)
    freeze(layer.weight, mask)
    optimizer = protect(optim.SGD([layer.weight], 0.1, weight_decay=0.1), layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = layer.weight.detach().clone()
    steep = torch.where(mask.dense(), 1.0, float("inf"))
    scaler.scale((layer.weight * steep).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert same_bits(layer.weight[~mask.dense()], before[~mask.dense()])
    assert not (layer.weight == before)[mask.dense()].any()


@pytest.mark.parametrize("foreach", [False, True])
def test_clipping_sees_active_entries_alone(mask, foreach):
    layer, frozen = MaskedLinear(9, 7, bias=False, mask=mask), nn.Linear(9, 7, bias=False)
    freeze(frozen.weight, mask)
    parameters = [layer.weight, frozen.weight]
    optimizer = protect(optim.SGD(parameters, 0.1, weight_decay=0.1), nn.ModuleList([layer, frozen]))
    x = torch.randn(8, 9)
    (layer(x) + frozen(x)).pow(2).sum().backward()
    norm = torch.cat([p.grad[mask.dense()] for p in parameters]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(parameters, 0.5, foreach=foreach), norm)
    clipped = torch.cat([p.grad[mask.dense()] for p in parameters])
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.5))
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    got = torch.cat([(p - b)[mask.dense()] for p, b in zip(parameters, before, strict=True)])
    decay = torch.cat([0.1 * b[mask.dense()] for b in before])
    torch.testing.assert_close(got, -0.1 * (clipped + decay))


def test_accumulation(layer, optimizer, mask):
    protect(optimizer, layer)
    layer.set_mask(mask)
    twin = copy.deepcopy(layer)
    plain = optim.AdamW(twin.parameters(), 0.05, weight_decay=0.1)
    take_state(plain, optimizer)
    for model, o in ((layer, optimizer), (twin, plain)):
        o.zero_grad()
        for x in torch.arange(27.0).reshape(3, 1, 9):
            model(x).pow(2).sum().backward()
        o.step()
    assert not under(layer).any() and under(twin).any()
    assert same_bits(layer.weight[mask.dense()], twin.weight[mask.dense()]) and same_bits(layer.bias, twin.bias)


def test_state_is_the_optimizers_own(layer, optimizer, mask):
    keys, groups = list(optimizer.state_dict()), list(optimizer.param_groups[0])
    protect(optimizer, layer)
    assert list(optimizer.state_dict()) == keys and list(optimizer.param_groups[0]) == groups
    layer.set_mask(mask)
    trained(layer, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(layer)
    resumed = protect(optim.AdamW(twin.parameters(), 0.05, weight_decay=0.1), twin)
    resumed.load_state_dict(saved)
    for model, o in ((layer, optimizer), (twin, resumed)):
        trained(model, o, 3, torch.arange(9.0).unsqueeze(0))
    assert same_bits(layer.weight, twin.weight) and not under(layer).any()
    optimizer.load_state_dict(saved)  # hooks stay
    trained(layer, optimizer)
    assert not under(layer).any()


@pytest.mark.parametrize("copied", COPIES)
def test_copies_are_protected(layer, optimizer, mask, copied):
    protect(optimizer, layer)
    layer.set_mask(mask)
    before = layer.weight.detach().clone()
    twin, other = copied((layer, optimizer))
    assert is_protected(other, twin) and not is_protected(other, layer)
    assert other.param_groups[0]["params"][0] is twin.weight and type(other) is optim.AdamW
    trained(twin, other)
    assert not under(twin).any() and not same_bits(twin.weight, before)
    assert same_bits(layer.weight, before)
    trained(layer, optimizer)
    assert not under(layer).any()
    again, third = copied((twin, other))
    trained(again, third)
    assert not under(again).any()
    alone = copied(optimizer)
    assert repr(alone) == repr(optimizer)


def test_nothing_keeps_a_dropped_optimizer(layer, optimizer):
    here = weakref.ref(protect(optim.SGD(layer.parameters(), 0.1), layer))
    gc.disable()
    try:
        assert here() is None  # without a collection of cycles
    finally:
        gc.enable()


def test_subclasses_that_step_in_steps(mask):
    class Decayed(optim.SGD):
        def step(self, closure=None):
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.5)
            return super().step(closure)

    layer = MaskedLinear(9, 7)
    layer.set_mask(mask, retain=True)
    optimizer = protect(Decayed(layer.parameters(), 0.1), layer)
    before = layer.weight.detach().clone()
    trained(layer, optimizer)
    assert same_bits(under(layer), before[~mask.dense()]) and not (layer.weight == before)[mask.dense()].any()


def test_a_scheduler_steps_around_it(layer, optimizer, mask):
    protect(optimizer, layer)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    layer.set_mask(mask)
    for _ in range(3):
        trained(layer, optimizer, 1)
        schedule.step()
    assert not under(layer).any() and schedule.get_last_lr() == [0.05 / 8]


def test_compiled_steps(layer, optimizer, mask):
    protect(optimizer, layer)
    layer.set_mask(mask)
    twin, plain = copy.deepcopy((layer, optimizer))
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 9)
        for model, o, call in ((layer, optimizer, step), (twin, plain, plain.step)):
            o.zero_grad()
            model(x).pow(2).sum().backward()
            call()
    assert not under(layer).any()
    torch.testing.assert_close(layer.weight, twin.weight)


def test_channels_last_weights():
    layer = MaskedConv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = protect(optim.Adam(layer.parameters(), 0.05), layer)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    mask = Mask.random((6, 4, 3, 3), 0.5)
    for retain in (False, True):
        layer.set_mask(mask, retain=retain)
        before = layer.weight.detach().clone()
        layer(torch.randn(2, 4, 5, 5)).sum().backward()
        optimizer.step()
        assert same_bits(under(layer), before[~mask.dense()])
        with torch.no_grad():
            layer.weight.add_(1.0)
