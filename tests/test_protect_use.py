"""protect in use: what it looks up, stores, survives and refuses; optimizers that lack it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import maskfuse
import pytest
import torch
from maskfuse import Mask, is_protected, protect
from maskfuse.nn import MaskedConv2d, MaskedLinear, freeze
from optimizers import same_bits, take_state, trained
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture
def layer():
    return MaskedLinear(9, 7)


@pytest.fixture
def optimizer(layer):
    """With moments of every weight, which move it whatever its gradient is."""
    optimizer = optim.AdamW(layer.parameters(), 0.05, weight_decay=0.1)
    trained(layer, optimizer)
    return optimizer


@pytest.fixture
def mask():
    return Mask.random((7, 9), 0.5)


def under(layer):
    return layer.weight.detach()[~layer.mask.dense()]


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unprotected_optimizer_is_warned_of(layer, mask, frozen):
    """Once, at the step that begins to move masked weights, and from where it was called."""
    optimizer = optim.Adam(layer.parameters(), 0.05)
    trained(layer, optimizer)
    if frozen:
        freeze(layer.weight, mask)
    else:
        layer.set_mask(mask)
    before = layer.weight.detach()[~mask.dense()]
    with pytest.warns(UserWarning, match=r"Adam has momentum \('exp_avg'\).*\[7, 9\].*maskfuse.protect") as caught:
        trained(layer, optimizer)
    assert len(caught) == 1 and caught[0].filename == trained.__code__.co_filename
    assert not (layer.weight[~mask.dense()] == before).any()


@pytest.mark.parametrize(
    ("name", "options", "stale"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, False),
        ("SGD", {}, True),
        ("Rprop", {}, True),
        ("Adagrad", {}, True),
    ],
)
def test_optimizers_that_move_nothing_are_not(layer, mask, name, options, stale):
    optimizer = getattr(optim, name)(layer.parameters(), 0.01, **options)
    if stale:
        trained(layer, optimizer)
    layer.set_mask(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(layer, optimizer)
    assert not under(layer).any()


def test_nor_are_those_of_other_models(layer, optimizer, mask):
    layer.set_mask(mask)
    stranger, dropped = nn.Linear(9, 7), MaskedLinear(9, 7, mask=mask)
    others = optim.Adam([*stranger.parameters(), *dropped.parameters()])
    del dropped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(stranger, others)
        trained(layer, protect(optimizer, layer))


def test_decay_of_retained_values_is_warned_of(layer, mask):
    layer.set_mask(mask, retain=True)
    with pytest.warns(UserWarning, match=r"AdamW has a weight decay of 0\.01, and moves weights under a mask"):
        trained(layer, optim.AdamW(layer.parameters(), 0.05))
    twin = MaskedLinear(9, 7)
    old = optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    trained(twin, old)
    twin.load_state_dict(layer.state_dict())
    with pytest.warns(UserWarning, match=r"SGD has momentum \('momentum_buffer'\)"):
        trained(twin, old)


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


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def through_a_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, through_a_file])
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


def test_errors(layer, mask):
    optimizer = optim.SGD(layer.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got MaskedLinear"):
        protect(layer, layer)
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got list"):
        protect(optimizer, [layer])
    with pytest.raises(ValueError, match=r"optimizer \(SGD of 2 parameters\) has no parameter of model \(Linear\)"):
        protect(optimizer, nn.Linear(2, 2))
    assert not is_protected(optimizer, layer) and not optimizer._optimizer_step_pre_hooks


def test_masks_that_do_not_fit(layer, mask):
    model = nn.Sequential(layer)
    layer.set_mask(mask)
    layer.weight = nn.Parameter(torch.randn(7, 8))
    optimizer = protect(optim.SGD(model.parameters(), 0.1), model)
    with pytest.raises(
        ValueError, match=r"mask of layer '0' \(MaskedLinear\).*weight, \[7, 8\], got \[7, 9\]; set_mask"
    ):
        optimizer.step()
    frozen = freeze(nn.Parameter(torch.randn(7, 9)), mask)
    frozen.data = torch.randn(7, 8)
    optimizer = protect(optim.SGD([frozen], 0.1), nn.ParameterList([frozen]))
    with pytest.raises(ValueError, match=r"frozen parameter must have its shape, \[7, 8\], got \[7, 9\]; freeze"):
        optimizer.step()


def test_weights_that_are_computed(mask):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    layer = MaskedLinear(9, 7, mask=mask)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    optimizer = protect(optim.SGD(layer.parameters(), 0.1), layer)
    with pytest.raises(ValueError, match=r"mask of layer '' .*computed from other parameters.*nn.freeze"):
        optimizer.step()


def test_is_public():
    assert maskfuse.protect is protect and {"is_protected", "optim", "protect"} <= set(maskfuse.__all__)
