"""protect: every optimizer leaves masked and frozen weights bit for bit, and gives the others their plain update."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import warnings
import weakref

import maskfuse
import pytest
import torch
from maskfuse import Mask, is_protected, protect
from maskfuse.nn import MaskedConv2d, MaskedLinear, freeze
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 20
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda])]
if not torch.cuda.is_available():
    DEVICES = ["cpu"]

# Optimizers that update each weight by its own gradient and state, and what switches their code on.
ELEMENTWISE = {
    "SGD": [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "Adam": [{}, {"weight_decay": 0.1, "amsgrad": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "AdamW": [{}, {"weight_decay": 0.5, "amsgrad": True}, {"lr": "tensor"}],
    "NAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RMSprop": [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"centered": True, "momentum": 0.5}],
    "Adagrad": [{}, {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "Adadelta": [{}, {"weight_decay": 0.1}],
    "Adamax": [{}, {"weight_decay": 0.1}],
    "ASGD": [{}, {"weight_decay": 0.1, "t0": 2}],
    "Rprop": [{}, {"etas": (0.4, 1.3)}],
}
TOGETHER = {  # optimizers whose update of a weight depends on others
    "Adafactor": [{}, {"weight_decay": 0.1}, {"foreach": False}, {"foreach": True}, {"maximize": True}],
    "Muon": [{}, {"nesterov": False, "weight_decay": 0.5}],
}
IMPLEMENTATIONS = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True, "foreach": False},
    "capturable foreach": {"capturable": True, "foreach": True},
}


def takes(name, options):
    return set(options) <= set(inspect.signature(getattr(optim, name)).parameters)


def cases():
    for device in DEVICES:
        kind = device if isinstance(device, str) else device.values[0]
        for name, variants in ELEMENTWISE.items():
            for how, options in IMPLEMENTATIONS.items():
                if not takes(name, options) or (kind == "cpu" and how.startswith("capturable")):
                    continue
                for i, variant in enumerate([*variants, {**variants[-1], "maximize": True}]):
                    if variant.get("lr") == "tensor" and how == "foreach":
                        continue  # torch refuses it
                    marks = [] if isinstance(device, str) else device.marks
                    yield pytest.param(kind, name, {**variant, **options}, id=f"{kind}-{name}-{how}-{i}", marks=marks)


def made(name, parameters, options):
    options = dict(options)
    if options.get("lr") == "tensor":
        options["lr"] = torch.tensor(0.05)
    return getattr(optim, name)(parameters, **{"lr": 0.05, **options})


def bits(t):
    t = t.detach().contiguous()
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def take_state(optimizer, source):
    """Gives an optimizer another one's state as it is; load_state_dict would cast some of it."""
    for theirs, ours in zip(source.param_groups, optimizer.param_groups, strict=True):
        for p, q in zip(theirs["params"], ours["params"], strict=True):
            optimizer.state[q] = {
                key: value.clone() if isinstance(value, torch.Tensor) else value
                for key, value in source.state[p].items()
            }


def same_bits(a, b):
    return torch.equal(bits(a), bits(b))


class Watched:
    """A model with every kind of masked parameter, their masks, and what was under these."""

    def __init__(self, device="cpu", dtype=torch.float32, flat=False):
        self.model = nn.Sequential(
            MaskedLinear(9, 7, dtype=dtype),
            MaskedLinear(7, 9, dtype=dtype),
            nn.Linear(9, 6, bias=not flat, dtype=dtype),
            *([] if flat else [MaskedConv2d(2, 3, 3, dtype=dtype)]),
        ).to(device)
        self.parameters = [p for p in self.model.parameters() if p.dim() >= 2 or not flat]
        self.masks = {}

    def mask(self):
        """Masks are set after some steps, so that optimizers have moments from before."""
        for i, layer in enumerate(self.model):
            mask = torch.rand(layer.weight.shape, device=layer.weight.device) > 0.4
            self.masks[layer.weight] = mask
            if isinstance(layer, nn.Linear) and not isinstance(layer, MaskedLinear):
                freeze(layer.weight, mask)
            else:
                layer.set_mask(mask, retain=i == 1)
        self.before = {p: p.detach().clone() for p in self.masks}

    def gradients(self, clean=True):
        """Random ones; the parameter's own may hold anything under the mask."""
        for p in self.parameters:
            p.grad = torch.randn_like(p)
            if p in self.masks and not clean:
                p.grad[~self.masks[p]] = torch.tensor(
                    [float("nan"), float("inf"), 3.0], device=p.device, dtype=p.dtype
                )[torch.randint(3, (int((~self.masks[p]).sum()),), device=p.device)]

    def twin(self):
        """Plain parameters with the same values and masked gradients."""
        return [nn.Parameter(p.detach().clone()) for p in self.parameters]

    def give(self, plain):
        for p, q in zip(self.parameters, plain, strict=True):
            q.grad = p.grad.clone() if p not in self.masks else torch.where(self.masks[p], p.grad, 0)

    def check_masked(self):
        for p, mask in self.masks.items():
            assert same_bits(p[~mask], self.before[p][~mask])
        assert any(self.before[p][~mask].any() for p, mask in self.masks.items())

    def check_active(self, plain):
        for p, q in zip(self.parameters, plain, strict=True):
            mask = self.masks.get(p, torch.ones_like(p, dtype=torch.bool))
            assert same_bits(p[mask], q[mask])
            assert not same_bits(p[mask], self.before.get(p, torch.full_like(p, float("nan")))[mask])


@pytest.mark.parametrize(("device", "name", "options"), list(cases()))
def test_elementwise_optimizers_bitwise(device, name, options):
    watched = Watched(device)
    optimizer = protect(made(name, watched.parameters, options), watched.model)
    for _ in range(3):
        watched.gradients()
        optimizer.step()
    watched.mask()
    twin = watched.twin()
    plain = made(name, twin, options)
    take_state(plain, optimizer)
    for _ in range(STEPS):
        watched.gradients(clean=False)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
    watched.check_active(twin)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(name, dtype):
    watched = Watched(dtype=dtype)
    optimizer = protect(made(name, watched.parameters, ELEMENTWISE[name][-1]), watched.model)
    watched.gradients()
    optimizer.step()
    watched.mask()
    for _ in range(3):
        twin = watched.twin()
        plain = made(name, twin, ELEMENTWISE[name][-1])
        take_state(plain, optimizer)
        watched.gradients(clean=False)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
    watched.check_active(twin)


@pytest.mark.parametrize(
    ("name", "options"), [pytest.param(n, o, id=f"{n}-{i}") for n, v in TOGETHER.items() for i, o in enumerate(v)]
)
def test_optimizers_of_whole_tensors(name, options):
    """Each step is the plain optimizer's on the masked gradient, from the same weights and state."""
    watched = Watched(flat=name == "Muon")
    optimizer = protect(made(name, watched.parameters, options), watched.model)
    for _ in range(3):
        watched.gradients()
        optimizer.step()
    watched.mask()
    for _ in range(STEPS):
        watched.gradients(clean=False)
        twin = watched.twin()
        plain = made(name, twin, options)
        take_state(plain, optimizer)
        watched.give(twin)
        optimizer.step()
        plain.step()
        watched.check_masked()
        watched.check_active(twin)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("as_keyword", [False, True])
def test_lbfgs(search, as_keyword):
    """Its closure's gradients are masked too, though terms of the loss read the weights themselves."""
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(MaskedLinear(9, 7), nn.Tanh(), nn.Linear(7, 3))
        twin = copy.deepcopy(model)
        x, y = torch.randn(20, 9), torch.randn(20, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    masks = [torch.rand(7, 9) > 0.4, torch.rand(3, 7) > 0.4]

    def prepare(model):
        model[0].set_mask(masks[0], retain=True)
        return [model[0].weight, model[2].weight]

    def loss_of(model):
        return (model(x) - y).pow(2).sum() + sum(p.pow(2).sum() for p in model.parameters())

    def closure_of(model, optimizer, after=lambda: None):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            after()
            return loss

        return closure

    weights, plain_weights = prepare(model), prepare(twin)
    freeze(weights[1], masks[1])
    before = [w.detach().clone() for w in weights]

    def mask_plain():
        for w, m in zip(plain_weights, masks, strict=True):
            w.grad.masked_fill_(~m, 0)

    optimizer = protect(optim.LBFGS(model.parameters(), 0.5, max_iter=5, line_search_fn=search), model)
    plain = optim.LBFGS(twin.parameters(), 0.5, max_iter=5, line_search_fn=search)
    for _ in range(STEPS):
        closure = closure_of(model, optimizer)
        loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
        want = plain.step(closure_of(twin, plain, mask_plain))
        assert loss.item() == want.item()
        for w, p, m, b in zip(weights, plain_weights, masks, before, strict=True):
            assert same_bits(w[~m], b[~m]) and b[~m].any()
            assert same_bits(w[m], p[m]) and not torch.equal(w[m], b[m])


def test_a_closure_sees_weights_that_stay():
    """A history from before the mask moves frozen weights inside a step; the loss is not that of moved ones."""
    layer = nn.Linear(6, 4)
    x, y = torch.randn(10, 6), torch.randn(10, 4)
    optimizer = protect(optim.LBFGS([layer.weight], max_iter=4), layer)
    seen = []

    def closure():
        seen.append(layer.weight.detach().clone())
        optimizer.zero_grad()
        loss = (layer(x) - y).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mask = torch.rand(4, 6) > 0.5
    freeze(layer.weight, mask)
    before = layer.weight.detach().clone()
    seen.clear()
    optimizer.step(closure)
    assert len(seen) > 2 and not torch.equal(seen[-1], before)
    assert all(same_bits(w[~mask], before[~mask]) for w in seen)


def test_a_closure_that_raises_leaves_weights_in_place():
    layer = MaskedLinear(6, 4)
    x = torch.randn(10, 6)
    optimizer = protect(optim.LBFGS(layer.parameters(), max_iter=4), layer)
    calls = []

    def closure():
        calls.append(None)
        if len(calls) == 7:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = layer(x).sub(1).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    layer.set_mask(torch.rand(4, 6) > 0.5)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert not layer.weight[~layer.mask.dense()].any()
    assert not optimizer._maskfuse_protection._steps  # nothing waits for the end of that step
    optimizer.step(closure)
    assert not layer.weight[~layer.mask.dense()].any()


def trained(model, optimizer, steps=3, x=None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 9) if x is None else x).pow(2).sum().backward()
        optimizer.step()


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
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not (layer.weight[~mask.dense()] == before).any()


def quiet(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


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


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients():
    table, twin = nn.Embedding(6, 4, sparse=True), nn.Embedding(6, 4, sparse=True)
    twin.load_state_dict(table.state_dict())
    optimizer, plain = (optim.SparseAdam(t.parameters(), 0.05) for t in (table, twin))
    protect(optimizer, table)
    rows = torch.tensor([1, 3, 1, 4])

    def step(table, optimizer, mask=None):
        optimizer.zero_grad()
        table(rows).pow(2).sum().backward()
        if mask is not None:
            grad = table.weight.grad.coalesce()
            values = torch.where(mask[grad.indices()[0]], grad.values(), 0)
            table.weight.grad = torch.sparse_coo_tensor(grad.indices(), values, grad.shape)
        optimizer.step()

    for t, o in ((table, optimizer), (twin, plain)):
        step(t, o)
    mask = torch.rand(6, 4) > 0.4
    freeze(table.weight, mask)
    before = table.weight.detach().clone()
    for _ in range(STEPS):
        step(table, optimizer)
        step(twin, plain, mask)
    assert same_bits(table.weight[~mask], before[~mask])
    active = mask & (torch.arange(6)[:, None] == rows).any(1, keepdim=True)
    assert same_bits(table.weight[active], twin.weight[active]) and not (table.weight == before)[active].any()


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


@pytest.mark.filterwarnings("ignore:.* moves weights under a mask")  # so the plain one does
@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if takes(n, {"differentiable": True})])
def test_differentiable(name):
    """Steps can be differentiated: a masked weight is its own, whatever the gradient."""
    start = torch.randn(7, 9, requires_grad=True)
    incoming = torch.randn(7, 9, requires_grad=True)
    mask = Mask.random((7, 9), 0.5)
    active = mask.dense()

    def stepped(guarded):
        layer = MaskedLinear(9, 7, bias=False, mask=mask)
        layer._retain = True
        del layer.weight
        layer.weight = start.clone()
        optimizer = made(name, [layer.weight], {"differentiable": True})
        if guarded:
            protect(optimizer, layer)
        layer.weight.grad = incoming if guarded else torch.where(active, incoming, 0)
        optimizer.step()
        return layer.weight

    got, want = stepped(True), stepped(False)
    assert same_bits(got[~active], start[~active]) and same_bits(got[active], want[active])
    # Rprop's is zero by definition and Adam's first step the gradient's sign, so no more is asked than agreement.
    gradients = torch.autograd.grad(got.pow(2).sum(), [start, incoming], allow_unused=True)
    wanted = torch.autograd.grad(want[active].pow(2).sum(), [start, incoming], allow_unused=True)
    torch.testing.assert_close(gradients[0], torch.where(active, wanted[0], 2 * start), equal_nan=True)
    if wanted[1] is not None:
        torch.testing.assert_close(gradients[1][active], wanted[1][active], equal_nan=True)
        assert not gradients[1][~active].any()


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


def sharded(rank, processes, path):
    """One process of `test_fully_sharded_models`; errors end the test."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=processes)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (processes,))
    torch.manual_seed(0)
    plain = nn.Sequential(MaskedLinear(9, 7), nn.ReLU(), nn.Linear(7, 5), MaskedLinear(5, 3))
    spread = copy.deepcopy(plain)
    masks = [torch.rand(layer.weight.shape) > 0.5 for layer in (plain[0], plain[2], plain[3])]
    x = torch.randn(4, 9)
    for layer in (*spread[::2], spread):
        fully_shard(layer, mesh=mesh)
    weights = []
    for model in (plain, spread):
        optimizer = optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
        trained(model, optimizer, 2, x)
        model[0].set_mask(masks[0])
        freeze(model[2].weight, masks[1])
        model[3].set_mask(masks[2], retain=True)
        before = [model[i].weight.detach().clone() for i in (0, 2, 3)]
        trained(model, protect(optimizer, model), 3, x)
        after = [model[i].weight.detach() for i in (0, 2, 3)]
        weights.append([[t.full_tensor() if hasattr(t, "full_tensor") else t for t in ts] for ts in (before, after)])
    for mask, before, after, want in zip(masks, *weights[1], weights[0][1], strict=True):
        assert same_bits(before[~mask], after[~mask]) and not (before == after)[mask].any()
        torch.testing.assert_close(after, want)
    assert not weights[1][1][0][~masks[0]].any() and weights[1][1][2][~masks[2]].all()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fully_sharded_models(tmp_path):
    """FSDP2 in two processes, whose parts of a weight differ in size."""
    torch.multiprocessing.spawn(sharded, (2, str(tmp_path / "rendezvous")), nprocs=2)


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


def test_every_optimizer_of_torch_is_tested():
    known = {n for n, o in vars(optim).items() if isinstance(o, type) and issubclass(o, optim.Optimizer)}
    assert known - {"Optimizer"} <= {*ELEMENTWISE, *TOGETHER, "LBFGS", "SparseAdam"}


def test_is_public():
    assert maskfuse.protect is protect and {"is_protected", "optim", "protect"} <= set(maskfuse.__all__)
