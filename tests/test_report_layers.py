"""report of each kind of layer: shared, frozen, gated, compact, on other devices."""

from __future__ import annotations

import json

import maskfuse
import pytest
import torch
from maskfuse import Mask, Policy, convert, report
from maskfuse.nn import (
    Bypass,
    ChannelGate,
    CompactConv2d,
    CompactLinear,
    GatedConv2d,
    GatedLinear,
    MaskedConv2d,
    MaskedLinear,
    freeze,
)
from reported import IMAGES, small
from torch import nn


def test_the_example_run_keeps_packed_weights():
    model = nn.Sequential(MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.1)), nn.Dropout(0.5))
    maskfuse.pack(model[0].eval())  # its parent is in training mode
    (row,) = report(model, torch.randn(3, 64)).layers
    assert row.bytes.packed == model[0].packed_nbytes > 0 and model.training and model[1].training
    if not row.kernel.endswith("scalar"):
        assert row.kernel.startswith("decode")


def test_shared_layers_and_weights():
    model = nn.Module()
    model.a = model.again = nn.Linear(6, 6, bias=False)
    model.b, model.c = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    model.c.weight = model.b.weight
    convert(model, 0.5)
    found = report(model)
    assert [(row.name, row.also, row.shares) for row in found.layers] == [
        ("a", ("again",), None),
        ("b", (), None),
        ("c", (), "b"),
    ]
    totals = found.totals
    assert totals.parameters == totals.masked_weights == 72 and totals.active == totals.masked_active == 36
    assert totals.bytes == 72 * 4 + 2 * 6 * 4  # two masks: b and c have one
    assert "a (= again)" in str(found) and "c (weight of b)" in str(found)


def test_frozen_and_retained():
    model = nn.Sequential(MaskedLinear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), MaskedLinear(8, 8))
    model[0].set_mask(Mask.channels((8, 8), out=torch.arange(4)), retain=True)
    freeze(model[0].weight, Mask.channels((8, 8), inp=torch.arange(2)))
    freeze(model[1].weight, Mask.channels((8, 8), inp=torch.arange(6)))
    model[3].weight.requires_grad_(False)
    first, second, last = report(model).layers
    assert (first.retained, first.frozen, first.active, first.trained) == (True, 0.75, 32, 8)
    assert (second.name, second.frozen, second.active, second.trained) == ("1", 0.25, 64, 48) and not second.masked
    assert last.trained == 0 and last.active == 64
    text = str(report(model))
    assert "0 (retained; 75% frozen)" in text and "3 (not trained)" in text
    assert report(model).totals.masked_weights == 128
    assert [row.name for row in report(model, plain=True).layers] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ["sigmoid", "straight_through", "hard_concrete"])
def test_gated_layers(kind):
    model = nn.Sequential(GatedConv2d(4, 4, 3, kind=kind), nn.Flatten(), GatedLinear(16, 4, kind=kind))
    with torch.no_grad():
        model[2].scores[:, :12] = -1
    found = report(model, torch.randn(2, 4, 4, 4))
    conv, linear = found.layers
    assert linear.structure == f"{kind} gates" and linear.active == 16 and conv.density == 1
    assert linear.bytes.scores == linear.bytes.weight == 256 and linear.bytes.total == 512
    assert found.totals.parameters == 144 + 4 + 64 + 4 and found.totals.bytes == 2 * found.totals.dense_bytes - 32
    assert conv.kernel == "F.conv2d on weight * gate"
    assert linear.kernel == maskfuse.explain(model[2], batch=2).kernels["forward"]
    assert any("harden" in note for note in found.notes)
    assert report(nn.Sequential(model[2].harden())).layers[0].active == 16


def test_compact_layers():
    masked = small()
    model = nn.Sequential(*(m.to_compact() if hasattr(m, "to_compact") else m for m in masked))
    found, want = report(model, IMAGES), report(masked, IMAGES)
    assert [row.kind for row in found.layers] == ["CompactConv2d", "CompactConv2d", "CompactLinear"]
    for row, of_masked in zip(found.layers, want.layers, strict=True):
        for key in ("name", "shape", "dtype", "device", "structure", "active", "density", "trained", "calls", "kernel"):
            assert getattr(row, key) == getattr(of_masked, key), key
        assert row.bytes.weight == 4 * row.active and row.bytes.mask == of_masked.bytes.mask and row.masked
    ours, theirs = found.totals, want.totals
    for key in ("parameters", "active", "masked_weights", "masked_active", "dense_bytes", "flop", "dense_flop"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.bytes == theirs.bytes - 4 * (ours.masked_weights - ours.masked_active)
    assert [row.kernel is None for row in report(model, batch=5).layers] == [True, True, False]
    maskfuse.pack(model.eval())
    assert report(model).layers[2].bytes.packed == model[3].packed_nbytes > 0
    assert "CompactLinear" in str(found) and json.loads(found.to_json())["layers"][2]["kind"] == "CompactLinear"


def test_compact_layers_that_are_odd():
    mask = Mask.random((8, 8), 0.25)
    model = nn.Sequential(*(CompactLinear(8, 8, bias=False, mask=mask) for _ in range(3)), CompactConv2d(2, 4, 3))
    model[1].values = model[0].values
    model[2].set_mask(torch.zeros(8, 8, dtype=torch.bool))
    freeze(model[0].values, torch.arange(16) < 4)
    model[3].values.requires_grad_(False)
    first, shared, empty, full = report(model).layers
    assert (first.frozen, first.trained, shared.shares) == (0.75, 4, "0")
    assert empty.active == empty.bytes.weight == 0 and empty.density == 0 and full.trained == 0 and full.density == 1
    totals = report(model).totals
    assert totals.parameters == totals.masked_weights + 4 == 64 + 64 + 72 + 4
    assert totals.dense_bytes == 4 * totals.parameters and totals.masked_active == 16 + 72
    meta = CompactLinear(8, 8, mask=mask, device="meta")
    assert report(meta).layers[0].device == "meta" and report(meta).layers[0].active == 16


def test_other_modules_are_mentioned():
    model = nn.Sequential(ChannelGate(k=2), Bypass(nn.Linear(4, 4), p=0.5))
    assert [(m.name, m.kind) for m in report(model).mentions] == [("0", "ChannelGate"), ("1", "Bypass")]
    assert "k=2" in report(model).mentions[0].detail and "p=0.5" in str(report(model))


def test_models_without_masked_layers_say_so():
    found = report(nn.Sequential(nn.Linear(3, 4)))
    assert found.layers == () and found.totals.density == 1 and found.totals.active == 16
    assert "no layer is masked or gated: maskfuse.convert" in str(found)
    assert report(nn.ReLU()).totals.parameters == 0
    with pytest.raises(ValueError, match="no masked layers"):
        found.plot()


def test_other_devices_dtypes_and_computed_weights():
    meta = convert(nn.Sequential(nn.Linear(64, 64, device="meta")), Policy(mask=Mask.random((64, 64), 0.5)))
    (row,) = report(meta).layers
    assert row.device == "meta" and row.active == 2048
    (row,) = report(GatedLinear(8, 8, device="meta")).layers
    assert row.structure == "sigmoid gates" and not row.masked and row.density == 1
    (row,) = report(convert(nn.Conv2d(4, 4, 3), 0.5), torch.randn(0, 4, 5, 5)).layers
    assert row.calls[0].batch == row.flop == 0 and row.kernel
    half = convert(nn.Linear(64, 64).bfloat16(), 0.5)
    assert report(half).layers[0].dtype == "bfloat16" and report(half).layers[0].bytes.weight == 8192
    assert report(half).layers[0].name == ""
    computed = nn.utils.parametrizations.orthogonal(MaskedLinear(8, 8, mask=Mask.random((8, 8), 0.5)))
    (row,) = report(computed).layers
    assert row.dtype == "computed" and row.kernel is None and row.active == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_explain_of_gated_layers(dtype):
    layer = GatedLinear(256, 512, kind="sigmoid", dtype=dtype)
    found = maskfuse.explain(layer, batch=64)
    assert found.op == "gated_linear" and found.backend == "cpu" and "sigmoid gates" in found.mask
    assert set(found.kernels) == {"forward", "input_grad", "weight_grad"}
    for direction, kernel in found.kernels.items():
        assert kernel.split()[0] == next(iter(found.estimates[direction]))
        assert ("library" in found.estimates[direction]) is (dtype == torch.float32 and "scalar" not in kernel)
    assert maskfuse.explain(GatedLinear(8, 8, kind="hard_concrete")).op == "masked_linear"  # of a real-valued mask
    conv = maskfuse.explain(GatedConv2d(4, 4, 3))
    assert conv.op == "gated_conv2d" and set(conv.kernels.values()) == {"F.conv2d on weight * gate"}
    assert maskfuse.explain(GatedConv2d(4, 4, 3, kind="straight_through")).op == "masked_conv2d"
    with maskfuse.use_backend("reference"):
        assert maskfuse.explain(layer).kernels["forward"] == "F.linear on weight * gate"
    with pytest.raises(ValueError, match="batch"):
        maskfuse.explain(layer, batch=-1)
    with pytest.raises(TypeError, match="dtype"):
        maskfuse.explain(layer, dtype=torch.int8)


def test_masked_convolutions_without_batch_dimension():
    layer = MaskedConv2d(4, 4, 3, mask=Mask.random((4, 4, 3, 3), 0.5))
    (row,) = report(layer, torch.randn(4, 6, 7)).layers
    assert (row.calls[0].batch, row.calls[0].size) == (1, (6, 7)) and row.flop == 2 * 72 * 4 * 5
