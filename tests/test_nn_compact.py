"""CompactLinear and CompactConv2d as layers: construction, conversion, state, copies, dtypes, devices."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from compact import KINDS, made, random_mask
from copies import pickled, through_a_file
from maskfuse import Mask
from maskfuse.nn import CompactConv2d, CompactLinear, GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn
from torch.optim.swa_utils import AveragedModel


@pytest.fixture
def mask():
    return Mask.random((6, 40), 0.5)


def test_construction(mask):
    torch.manual_seed(1)
    layer = CompactLinear(40, 6, mask=mask)
    torch.manual_seed(1)
    plain = nn.Linear(40, 6)
    assert not isinstance(layer, nn.Linear) and type(layer).__mro__[-2] is nn.Module
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [("values", (120,)), ("bias", (6,))]
    assert not list(layer.buffers()) and layer.mask == mask
    assert torch.equal(layer.values, plain.weight[mask.dense()]) and torch.equal(layer.bias, plain.bias)
    assert torch.equal(layer.weight, torch.where(mask.dense(), plain.weight, 0))
    assert CompactLinear(40, 6, bias=False, dtype=torch.float64).values.shape == (240,)
    assert CompactLinear(40, 6, bias=False).bias is None
    assert CompactLinear(40, 6, mask=mask.dense()).mask == CompactLinear(40, 6, mask=mask.dense().int()).mask == mask
    torch.manual_seed(1)
    conv = CompactConv2d(4, 6, (3, 2), 2, "valid", (1, 2), 2, False, "zeros", dtype=torch.float64)
    torch.manual_seed(1)
    assert torch.equal(conv.weight, nn.Conv2d(4, 6, (3, 2), groups=2, bias=False, dtype=torch.float64).weight)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(6, 40), TypeError, "binary"),
        (torch.full((6, 40), 2), ValueError, "0 or 1"),
        (Mask.full((6, 41)), ValueError, r"\[6, 40\], got \[6, 41\]"),
        (torch.ones(40, 6, dtype=torch.bool), ValueError, r"\[out, in\].*\[in, out\]"),
        ("half", TypeError, "str"),
    ],
)
def test_bad_masks(mask, bad, error, message):
    with pytest.raises(error, match=message):
        CompactLinear(40, 6, mask=bad)
    layer = CompactLinear(40, 6, mask=mask)
    before = layer.values.detach().clone()
    with pytest.raises(error, match=message):
        layer.set_mask(bad)
    assert layer.mask == mask and torch.equal(layer.values, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_round_trips(kind, bias):
    layer, x = made(kind, torch.float64, bias)
    layer.eval().weight.requires_grad_(False)
    state = torch.get_rng_state()
    compact = layer.to_compact()
    masked, plain = compact.to_masked(), compact.to_dense()
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert type(masked) is type(layer) and masked.mask == layer.mask and torch.equal(masked.weight, layer.weight)
    assert type(plain) is layer.plain and torch.equal(plain.weight, layer.weight)
    for one in (compact, masked, plain):
        assert not one.training and (one.bias is None) != bias
        assert not next(one.parameters()).requires_grad
        assert torch.allclose(one(x), layer(x))
        assert repr(layer).partition("(")[2].startswith(repr(one).partition("(")[2].rstrip(")"))
    again = type(compact).from_dense(plain, layer.mask)
    assert torch.equal(again.values, compact.values) and again.mask == layer.mask
    with torch.no_grad():
        compact.values.zero_()
    assert layer.weight.any() == bool(layer.mask.active)  # nothing is shared


def test_conversion_of_others(mask):
    layer = MaskedLinear(40, 6)
    layer.set_mask(mask, retain=True)
    assert not layer.to_compact().to_masked().weight[~mask.dense()].any()  # retained values are left behind
    assert CompactLinear.from_dense(nn.Linear(40, 6)).mask.structure == "full"
    narrower = mask & Mask.random((6, 40), 0.5)
    assert CompactLinear.from_dense(layer, narrower).mask == narrower
    for bad in (nn.Conv2d(1, 1, 1), GatedLinear(40, 6), CompactLinear(40, 6)):
        with pytest.raises(TypeError, match="layer must"):
            CompactLinear.from_dense(bad)
    with pytest.raises(ValueError, match="shape"):
        CompactLinear.from_dense(nn.Linear(4, 6), mask)


def test_repr(mask):
    assert repr(CompactLinear(40, 6, mask=mask)) == (
        "CompactLinear(in_features=40, out_features=6, bias=True, density=0.5, structure=unstructured)"
    )
    assert repr(CompactConv2d(2, 4, 3, groups=2, padding="same", padding_mode="circular")) == (
        "CompactConv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=2, padding_mode=circular, "
        "density=1, structure=full)"
    )


def test_state_round_trip(mask):
    layer = CompactLinear(40, 6, mask=mask)
    state = layer.state_dict()
    assert {k: v.shape for k, v in state.items()} == {"values": (120,), "bias": (6,), "mask_bits": (6, 2)}
    for assign in (False, True):
        for other in (CompactLinear(40, 6), CompactLinear(40, 6, mask=Mask.random((6, 40), 0.5))):
            other.values.grad = torch.ones_like(other.values)
            assert not any(other.load_state_dict(state, assign=assign))
            assert other.mask == mask and torch.equal(other.values, layer.values) and other.values.grad is None
            x = torch.randn(3, 40)
            assert torch.equal(other(x), layer(x))
    other = CompactLinear(40, 6, mask=mask)
    bits, state["mask_bits"] = state["mask_bits"], other.mask.bits
    other.load_state_dict(state)
    bits.zero_()
    assert layer.mask == mask and other.mask == mask
    del state["mask_bits"]
    other.load_state_dict(state)  # a missing mask keeps the current one


def test_dense_states_load(mask):
    plain = nn.Linear(40, 6)
    layer = CompactLinear(40, 6, mask=mask)
    layer.load_state_dict(plain.state_dict())
    assert layer.mask == mask and torch.equal(layer.values, plain.weight[mask.dense()])
    masked = MaskedLinear(40, 6, mask=random_mask(layer, 0.2))
    layer.load_state_dict(masked.state_dict())
    assert layer.mask == masked.mask and torch.equal(layer.weight, masked.weight)
    model = nn.Sequential(nn.Linear(3, 40), CompactLinear(40, 6))
    model.load_state_dict(nn.Sequential(nn.Linear(3, 40), masked).state_dict())
    assert torch.equal(model[1].weight, masked.weight)


def test_dense_state_dict(mask):
    model = nn.Sequential(
        nn.Linear(3, 40), CompactLinear(40, 6, mask=mask), nn.BatchNorm1d(6), MaskedLinear(6, 5), nn.Linear(5, 5)
    )
    model[3].set_mask(Mask.random((5, 6), 0.5), retain=True)
    plain = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 5))
    state = maskfuse.dense_state_dict(model)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    x = torch.randn(4, 3)
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))
    assert torch.equal(plain[1].weight, model[1].weight) and not plain[3].weight[~model[3].mask.dense()].any()
    assert list(maskfuse.dense_state_dict(model[1])) == ["weight", "bias"]
    with pytest.raises(TypeError, match="Module"):
        maskfuse.dense_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(119)}, r"values: must have shape \[120\], got float32 tensor \[119\]"),
        ({"values": torch.zeros(120, 1)}, r"must have shape \[120\]"),
        ({"bias": torch.zeros(5)}, r"bias: must have shape \[6\]"),
        ({"mask_bits": torch.zeros(6, 2)}, "int32"),
        ({"mask_bits": torch.zeros(6, 3, dtype=torch.int32)}, r"\[6, 2\]"),
        ({"mask_bits": torch.zeros(6, 2, dtype=torch.int32)}, r"must have shape \[0\]"),
        ({"mask_bits": torch.full((6, 2), -1, dtype=torch.int32)}, "past the last column"),
        ({"values": None, "weight": torch.zeros(6, 39)}, r"weight: mask must have the shape of weight"),
        ({"values": None}, "Missing.*values"),
        ({"extra": torch.zeros(1)}, "Unexpected.*extra"),
    ],
)
def test_corrupt_states_are_refused(mask, change, message):
    layer = CompactLinear(40, 6, mask=Mask.random((6, 40), 0.3))
    before = (layer.mask, layer.values.detach().clone(), layer.bias.detach().clone())
    state = {**CompactLinear(40, 6, mask=mask).state_dict(), **change}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    if "extra" not in change and "Missing" not in message:
        assert layer.mask == before[0] and torch.equal(layer.values, before[1]) and torch.equal(layer.bias, before[2])
    layer(torch.randn(2, 40))


def test_copies(mask):
    layer = CompactLinear(40, 6, mask=mask)
    twin = copy.deepcopy(layer)
    assert twin.mask is layer.mask and twin.values is not layer.values
    twin.set_mask(~mask)
    assert layer.mask == mask and layer.values.any()
    for again in (pickled(layer), through_a_file(layer)):
        assert again.mask == mask and torch.equal(again.values, layer.values)


def test_dtypes_and_devices(mask):
    layer = CompactLinear(40, 6, mask=mask)
    for convert in (layer.half, layer.bfloat16, layer.double, layer.float):
        assert convert() is layer and layer.mask == mask
        assert layer(torch.randn(3, 40, dtype=layer.values.dtype)).dtype == layer.values.dtype
    conv = CompactConv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert conv(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    meta = CompactLinear(40, 6, device="meta", mask=mask)
    assert meta.values.is_meta and meta.values.shape == (120,) and meta.mask == mask
    assert meta(torch.empty(3, 40, device="meta")).shape == (3, 6)
    assert CompactConv2d(3, 4, 3, device="meta")(torch.empty(1, 3, 5, 5, device="meta")).shape == (1, 4, 3, 3)
    meta.set_mask(Mask.full((6, 40)))
    assert meta.values.shape == (240,)
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta.values, layer.values) and meta.mask == mask
    empty = CompactLinear(40, 6, device="meta", mask=mask).to_empty(device="cpu")
    empty.reset_parameters()
    assert empty.mask == mask and empty.values.abs().max() <= 40**-0.5


def test_reset_parameters(mask):
    layer = CompactLinear(40, 6, mask=mask)
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    plain = nn.Linear(40, 6)
    assert torch.equal(layer.values, plain.weight[mask.dense()]) and torch.equal(layer.bias, plain.bias)


def test_averaging_and_checkpoint_helpers(mask):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = nn.Sequential(CompactLinear(40, 6, mask=mask), nn.BatchNorm1d(6))
    average = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.randn(8, 40)).pow(2).sum().backward()
        optimizer.step()
        average.update_parameters(model)
    assert average.module[0].mask == mask and average.module[0].values.any()
    state = get_model_state_dict(model[:1])
    assert list(state) == ["0.values", "0.bias", "0.mask_bits"]
    other = nn.Sequential(CompactLinear(40, 6, mask=mask))
    set_model_state_dict(other, state)
    assert torch.equal(other[0].values, model[0].values)


def test_shared_values(mask):
    layer, tied = CompactLinear(40, 6, mask=mask), CompactLinear(40, 6, mask=mask)
    tied.values = layer.values
    x = torch.randn(2, 40)
    (layer(x) + tied(x)).sum().backward()
    torch.testing.assert_close(layer.values.grad, 2 * x.sum(0).expand(6, 40)[mask.dense()])
    layer.set_mask(Mask.full((6, 40)))
    with pytest.raises(ValueError, match=r"values must have shape \[120\]"):
        tied(x)
    model = nn.Sequential(layer, nn.Linear(6, 40), layer)
    tied.values, tied._mask = layer.values, layer.mask
    model.append(nn.Linear(6, 40)).append(tied)
    y = model(x)
    maskfuse.fold(model)
    assert model[0] is model[2] and model[0].weight is model[4].weight
    torch.testing.assert_close(model(x), y)
    other, layer = CompactLinear(40, 6, mask=mask), CompactLinear(40, 6, mask=~mask)
    other.values = layer.values
    with pytest.raises(ValueError, match="share a weight and must have one mask"):
        maskfuse.fold(nn.ModuleList([layer, other]))


@pytest.mark.parametrize("kind", KINDS)
def test_fold(kind):
    layer, x = made(kind)
    model = nn.Sequential(layer.to_compact()).eval()
    compact = model[0]
    compact.values.requires_grad_(False)
    seen = []
    compact.register_forward_hook(lambda module, args, output: seen.append(module))
    with maskfuse.use_backend("reference"):
        y = model(x)
    assert maskfuse.fold(model) is model and model[0] is compact and type(compact) is layer.plain
    assert torch.equal(compact.weight, layer.weight) and not compact.weight.requires_grad and not compact.training
    assert [n for n, _ in compact.named_parameters()] == ["weight", "bias"]
    assert vars(compact).keys() == vars(layer.plain(**layer._arguments(layer))).keys()
    assert torch.equal(model(x), y) and seen == [compact, compact]
    plain = layer.to_dense()
    plain.load_state_dict(compact.state_dict())

    class Mine(layer.compact):
        pass

    with pytest.raises(TypeError, match="exactly"):
        maskfuse.fold(nn.Sequential(Mine.from_dense(layer)))


@pytest.mark.parametrize("kind", ["linear", "conv", "conv groups"])
def test_explain(kind):
    layer, _ = made(kind)
    size = None if kind == "linear" else (9, 9)
    ours, theirs = (maskfuse.explain(one, batch=16, size=size) for one in (layer.to_compact(), layer))
    assert ours.kernels == theirs.kernels


def test_in_a_transformer_layer(mask):
    """Its fast path in eval mode reads the weight, which is computed then."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    want = MaskedLinear.from_dense(block.linear1, Mask.random((16, 8), 0.5))
    x = torch.randn(2, 5, 8)
    block.linear1 = want.to_dense()
    y = block(x)
    block.linear1 = want.to_compact()
    torch.testing.assert_close(block(x), y)
    with torch.no_grad():
        torch.testing.assert_close(block(x), y)


def test_masked_twins_are_known():
    assert MaskedLinear.compact is CompactLinear and MaskedConv2d.compact is CompactConv2d
