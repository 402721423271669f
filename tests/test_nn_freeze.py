"""freeze: a parameter used in full whose gradient is masked, and what becomes of that in copies and moves."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from conftest import DTYPES
from copies import COPIES, through_a_file
from maskfuse import Mask
from maskfuse.nn import CompactLinear, GatedLinear, MaskedLinear, freeze, frozen_mask, keep_frozen, unfreeze
from torch import nn

SHAPE = (5, 7)


@pytest.fixture
def dense():
    return torch.rand(SHAPE) > 0.5


@pytest.fixture
def layer():
    return nn.Linear(7, 5)


def gradient(layer, x=None):
    """The weight's gradient of a loss that reads all of it."""
    layer.weight.grad = None
    layer(torch.arange(14.0, dtype=layer.weight.dtype).reshape(2, 7) if x is None else x).pow(2).sum().backward()
    return layer.weight.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_given", [Mask.from_dense, lambda m: m, lambda m: m.int(), lambda m: m.to(torch.uint8)])
def test_full_forward_and_masked_gradient(dense, as_given, dtype):
    layer = nn.Linear(7, 5, dtype=dtype)
    x = torch.randn(2, 7, dtype=dtype)
    before, plain = layer(x), gradient(layer).clone()
    assert freeze(layer.weight, as_given(dense)) is layer.weight
    assert torch.equal(layer(x), before) and plain.all()
    assert torch.equal(gradient(layer), torch.where(dense, plain, 0))
    assert frozen_mask(layer.weight) == Mask.from_dense(dense)
    assert type(layer.weight) is nn.Parameter  # which optimizers ask for


def test_masked_entries_are_positive_zero(layer, dense):
    freeze(layer.weight, dense)
    for value in (float("nan"), float("-inf"), -1.0):
        layer.weight.grad = None
        layer.weight.backward(torch.full(SHAPE, value))
        masked = layer.weight.grad[~dense]
        assert not masked.any() and not masked.signbit().any()
        assert torch.equal(layer.weight.grad[dense].isnan(), torch.full(SHAPE, value)[dense].isnan())


def test_autograd_grad_and_accumulation(layer, dense):
    x = torch.randn(2, 7)
    plain = torch.autograd.grad(layer(x).pow(2).sum(), layer.weight)[0]
    freeze(layer.weight, dense)
    got = torch.autograd.grad(layer(x).pow(2).sum(), layer.weight, create_graph=True)[0]
    assert torch.equal(got, torch.where(dense, plain, 0))
    got.sum().backward()  # the second derivative too
    assert not layer.weight.grad[~dense].any() and layer.weight.grad.any()
    layer.weight.grad = None
    for _ in range(3):
        layer(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.where(dense, 3 * plain, 0))


def test_freeze_again_and_unfreeze(layer, dense):
    plain = gradient(layer).clone()
    freeze(layer.weight, dense)
    freeze(layer.weight, ~dense)
    assert torch.equal(gradient(layer), torch.where(dense, 0, plain))
    assert unfreeze(layer.weight) is layer.weight and frozen_mask(layer.weight) is None
    assert torch.equal(gradient(layer), plain) and not layer.weight.__dict__
    assert unfreeze(layer.weight) is layer.weight
    assert frozen_mask(torch.ones(2)) is None


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("trained", [True, False])
def test_copies_are_frozen(layer, dense, copied, trained):
    model = nn.ModuleList([layer, nn.Linear(7, 5)])
    model[1].weight = layer.weight  # shared, and shared in the copy
    layer.weight.note = "kept by pickle"
    freeze(layer.weight, dense).requires_grad_(trained)
    for _ in range(2):  # a copy of a copy too
        twin = copied(model)
        assert twin[0].weight is twin[1].weight is not layer.weight
        assert frozen_mask(twin[0].weight) == Mask.from_dense(dense)
        assert twin[0].weight.requires_grad == trained and type(twin[0].weight) is nn.Parameter
        assert copied is copy.deepcopy or twin[0].weight.note == layer.weight.note
        twin[0].weight.requires_grad_(True)
        assert not gradient(twin[0])[~dense].any() and twin[0].weight.grad.any()
        assert list(twin.state_dict()) == list(model.state_dict())
        twin[0].weight.requires_grad_(trained)
        model = twin
    unfreeze(twin[0].weight)
    assert frozen_mask(layer.weight) is not None


def test_a_parameter_loads_as_weights_only(layer, dense):
    loaded = through_a_file(freeze(layer.weight, dense), weights_only=True)
    assert frozen_mask(loaded) == Mask.from_dense(dense) and torch.equal(loaded, layer.weight)


def test_copies_have_their_own_mask(layer, dense):
    freeze(layer.weight, dense)
    twin = copy.deepcopy(layer)
    freeze(twin.weight, ~dense)
    assert not gradient(layer)[~dense].any() and not gradient(twin)[dense].any()


def test_a_state_dict_is_that_of_the_plain_layer(layer, dense):
    freeze(layer.weight, dense)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"] and type(state["weight"]) is torch.Tensor
    other = nn.Linear(7, 5)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight) and not gradient(layer)[~dense].any()


def test_casts(layer, dense):
    freeze(layer.weight, dense)
    for convert in (layer.double, layer.bfloat16, layer.float):
        convert()
        assert not gradient(layer)[~dense].any() and layer.weight.grad.dtype == layer.weight.dtype


def test_the_flag_outlasts_requires_grad(layer, dense):
    layer.weight.requires_grad_(False)
    freeze(layer.weight, dense)
    assert not layer.weight.requires_grad
    layer.weight.requires_grad_(True)
    assert not gradient(layer)[~dense].any() and layer.weight.grad.any()


def test_meta(dense):
    layer = nn.Linear(7, 5, device="meta")
    freeze(layer.weight, Mask.from_dense(dense))
    layer(torch.empty(2, 7, device="meta")).sum().backward()
    assert layer.weight.grad.is_meta
    assert frozen_mask(copy.deepcopy(layer).weight) == Mask.from_dense(dense)  # its bits have values


def test_a_masked_layer_may_be_frozen(dense):
    layer = MaskedLinear(7, 5, mask=torch.rand(SHAPE) > 0.3)
    freeze(layer.weight, dense)
    active = dense & layer.mask.dense()
    grad = gradient(layer)
    assert not grad[~active].any() and grad[active].all()


def test_compile(layer, dense):
    freeze(layer.weight, dense)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 7)
    want = gradient(layer, x).clone()
    layer.weight.grad = None
    compiled(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, want)
    assert not layer.weight.grad[~dense].any()


def test_checkpoint_and_other_hooks(layer, dense):
    seen = []
    layer.weight.register_hook(lambda grad: seen.append(grad.clone()))
    freeze(layer.weight, dense)
    handle = layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    torch.utils.checkpoint.checkpoint(layer, torch.ones(2, 7), use_reentrant=False).pow(2).sum().backward()
    assert torch.equal(seen[1], torch.where(dense, seen[0], 0)) and seen[0].all()
    handle.remove()
    unfreeze(layer.weight)
    gradient(layer)
    assert len(seen) == 3  # the other hook is still there


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients():
    table = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4) > 0.5
    freeze(table.weight, mask)
    rows = torch.tensor([1, 3, 1])
    table(rows).sum().backward()
    want = torch.zeros(6, 4).index_add_(0, rows, torch.ones(3, 4)) * mask
    assert table.weight.grad.is_sparse and torch.equal(table.weight.grad.to_dense(), want)


def test_nothing_keeps_a_dropped_parameter(dense):
    here = weakref.ref(freeze(nn.Parameter(torch.randn(SHAPE)), dense))
    gc.disable()
    try:
        assert here() is None  # without a collection of cycles
    finally:
        gc.enable()


def replaced(model):
    model[0].weight = nn.Parameter(torch.randn(SHAPE))


def replaced_and_failed(model):
    replaced(model)
    raise RuntimeError("halfway")


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        replaced_and_failed,
        lambda model: model.to_empty(device="meta"),
        lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_keep_frozen(layer, dense, change, kept):
    """What comes under a frozen parameter's name is frozen by its mask; without the context it is not."""
    model = nn.Sequential(layer, nn.Linear(5, 7), nn.Linear(7, 5))
    model[2].weight = layer.weight  # shared; it may not be any more
    before = freeze(layer.weight, dense)
    fails = pytest.raises(RuntimeError, match="halfway") if change is replaced_and_failed else contextlib.nullcontext()
    with fails, keep_frozen(model) if kept else contextlib.nullcontext():
        change(model)
    assert layer.weight is not before
    assert frozen_mask(layer.weight) == (Mask.from_dense(dense) if kept else None)
    assert frozen_mask(model[1].weight) is None and frozen_mask(before) is not None
    if kept and not layer.weight.is_meta:
        assert not gradient(layer)[~dense].any() and layer.weight.grad.any()


def test_keep_frozen_leaves_what_was_not_replaced(layer, dense):
    freeze(layer.weight, dense)
    with keep_frozen(layer):
        unfreeze(layer.weight)
    assert frozen_mask(layer.weight) is None
    freeze(layer.weight, dense)
    with keep_frozen(layer):
        layer.weight = freeze(nn.Parameter(torch.randn(SHAPE)), ~dense)
    assert frozen_mask(layer.weight) == Mask.from_dense(~dense)
    wrong = pytest.raises(ValueError, match=r"must have the shape of parameter, \[2, 7\], got \[5, 7\]")
    with wrong, keep_frozen(layer):
        layer.weight = nn.Parameter(torch.randn(2, 7))
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got Parameter"), keep_frozen(layer.weight):
        pass


P, M = nn.Parameter(torch.randn(5, 8)), torch.ones(5, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: freeze(P, M.T), ValueError, r"mask must have the shape of parameter, \[5, 8\], got \[8, 5\]$"),
        (lambda: freeze(P, Mask.full((5, 9))), ValueError, r"shape of parameter, \[5, 8\], got \[5, 9\]"),
        (lambda: freeze(P, M.float()), TypeError, r"0/1 integers, got float32 tensor \[5, 8\]"),
        (lambda: freeze(P, M.int() * 2), ValueError, r"0 or 1 everywhere \(mask is int32 tensor \[5, 8\]\)"),
        (lambda: freeze(P, None), TypeError, "mask must be a maskfuse.Mask or a tensor, got NoneType"),
        (lambda: freeze(P.detach(), M), TypeError, r"parameter must be an nn.Parameter, got float32 tensor \[5, 8\]"),
        (lambda: freeze(nn.Linear(2, 2), M), TypeError, "parameter must be an nn.Parameter, got Linear"),
        (lambda: unfreeze(P.detach()), TypeError, "parameter must be an nn.Parameter"),
        (lambda: freeze(nn.Parameter(M.int(), False), M), TypeError, r"parameter must be float32.*got int32"),
        (lambda: freeze(nn.Parameter(torch.tensor(1.0)), torch.tensor(True)), ValueError, "at least one dimension"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert frozen_mask(P) is None and not P.__dict__ and not P._backward_hooks


def test_twins_of_a_layer_are_frozen_as_it_is(layer, dense):
    """Parameters that are copied into another kind of layer were trained again."""
    freeze(layer.weight, dense)
    freeze(layer.bias, torch.arange(5) < 2)
    mask = Mask.random(SHAPE, 0.5)
    masked, gated = MaskedLinear.from_dense(layer, mask), GatedLinear.from_dense(layer)
    compact = CompactLinear.from_dense(layer, mask)
    for twin in (masked, masked.to_dense(), gated, gated.to_dense(), gated.harden(), MaskedLinear.from_dense(masked)):
        assert torch.equal(frozen_mask(twin.weight).dense(), dense) and twin.weight is not layer.weight
    under = dense | ~mask.dense()  # what a compact layer has not is not frozen either
    for twin in (compact.to_masked(), compact.to_dense()):
        assert torch.equal(frozen_mask(twin.weight).dense(), under)
    for twin in (compact, masked.to_compact(), compact.to_masked().to_compact()):
        assert torch.equal(frozen_mask(twin.values).dense(), dense[mask.dense()])
    for twin in (masked, gated, compact, compact.to_masked(), compact.to_dense()):
        assert torch.equal(frozen_mask(twin.bias).dense(), torch.arange(5) < 2) and twin.bias is not layer.bias
    freeze(gated.scores, ~dense)
    assert torch.equal(frozen_mask(GatedLinear.from_dense(gated).scores).dense(), ~dense)
