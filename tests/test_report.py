"""report: rows, sums and kernels of models, and what it looks like."""

from __future__ import annotations

import copy
import io
import json
import sys

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
from torch import nn


def small():
    """A convolution of half of its channels, one of every second tap, a linear layer in blocks, and a plain head."""
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(144, 64)
    )
    model.append(nn.Linear(64, 10))
    masks = {
        "0": Mask.channels((16, 8, 3, 3), out=torch.arange(8)),
        "1": Mask.random((16, 8, 3, 3), 0.25),
        "3": Mask.blocks((torch.arange(8)[:, None] + torch.arange(18)) % 3 == 0, (8, 8)),
    }
    return convert(model, masks)


IMAGES = torch.randn(2, 8, 8, 8)


def test_rows():
    rows = {row.name: row for row in report(small()).layers}
    assert list(rows) == ["0", "1", "3"]
    assert [row.kind for row in rows.values()] == ["MaskedConv2d", "MaskedConv2d", "MaskedLinear"]
    assert [row.shape for row in rows.values()] == [(16, 8, 3, 3), (16, 8, 3, 3), (64, 144)]
    assert [row.structure for row in rows.values()] == ["channels", "unstructured", "blocks 8x8"]
    assert [row.active for row in rows.values()] == [576, 288, 3072]
    assert [row.density for row in rows.values()] == [0.5, 0.25, 1 / 3]
    assert [row.bytes.weight for row in rows.values()] == [4608, 4608, 36864]
    assert [row.bytes.mask for row in rows.values()] == [16 * 12, 16 * 12, 64 * 20]  # words of four bytes
    assert all(row.dtype == "float32" and row.device == "cpu" and row.masked for row in rows.values())
    assert all(row.trained == row.active and not row.retained and row.frozen is None for row in rows.values())


def test_sums():
    model = small()
    totals = report(model).totals
    parameters = sum(p.numel() for p in model.parameters())
    layers = [model[i] for i in (0, 1, 3)]
    assert totals.parameters == parameters and totals.masked_weights == 1152 + 1152 + 9216
    assert totals.masked_active == 576 + 288 + 3072 and totals.active == parameters - 11520 + 3936
    assert totals.density == 3936 / 11520
    assert totals.dense_bytes == 4 * parameters
    assert totals.bytes == 4 * parameters + sum(layer.mask.nbytes for layer in layers)
    assert totals.flop is totals.dense_flop is None
    model.eval()
    maskfuse.pack(model)
    packed = sum(layer.packed_nbytes for layer in layers)
    assert packed > 0 and report(model).totals.bytes == totals.bytes + packed
    assert sum(row.bytes.packed for row in report(model).layers) == packed


def test_example_inputs_count_operations_and_name_kernels():
    model = small()
    found = report(model, IMAGES)
    # Images of 8 x 8, then of 3 x 3, two of each.
    want = [2 * 64 * 576, 2 * 9 * 288, 2 * 3072]
    assert [row.flop for row in found.layers] == [2 * products for products in want]
    assert [row.dense_flop for row in found.layers] == [2 * 2 * 64 * 1152, 2 * 2 * 9 * 1152, 2 * 2 * 9216]
    assert found.totals.flop == 2 * (sum(want) + 2 * 640)  # and the plain head
    assert found.totals.dense_flop == sum(row.dense_flop for row in found.layers) + 2 * 2 * 640
    for row, layer, size in zip(found.layers, (model[0], model[1], model[3]), ((8, 8), (8, 8), None), strict=True):
        assert row.kernel == maskfuse.explain(layer, batch=2, size=size).kernels["forward"] and row.backend == "cpu"
        assert row.calls[0].batch == 2 and row.calls[0].size == size
    last = report(model, IMAGES.to(memory_format=torch.channels_last)).layers[0]
    assert last.calls[0].channels_last and not found.layers[0].calls[0].channels_last
    with maskfuse.use_backend("reference"):
        assert report(model, IMAGES).layers[0].kernel == "torch.where and F.conv2d"


def test_without_example_inputs():
    model = small()
    found = report(model)
    assert [row.kernel is None for row in found.layers] == [True, True, False]
    assert found.layers[2].kernel == maskfuse.explain(model[3], batch=1).kernels["forward"]
    assert found.notes[0].startswith("kernels are those of 1 row") and "example_inputs" in found.notes[1]
    assert report(model, batch=200).layers[2].kernel == maskfuse.explain(model[3], batch=200).kernels["forward"]


class Caller(nn.Module):
    """Calls one layer twice, one by keyword, and one never."""

    def __init__(self):
        super().__init__()
        self.twice, self.keyword, self.never = MaskedLinear(8, 8), MaskedLinear(8, 8), MaskedLinear(8, 8)
        self.train_mode = None

    def forward(self, x, *, scale):
        self.train_mode = self.training
        assert not torch.is_grad_enabled()
        return self.keyword(input=self.twice(self.twice(x))) * scale


def test_the_example_run_leaves_no_trace():
    model = Caller()
    for layer in (model.twice, model.keyword, model.never):
        layer.set_mask(Mask.random((8, 8), 0.25))
    model.never.eval()
    found = report(model, {"x": torch.randn(5, 3, 8), "scale": 2})
    assert model.train_mode is False and model.training and not model.never.training
    twice, keyword, never = found.layers
    assert len(twice.calls) == 2 and twice.flop == 2 * 2 * 15 * 16 and keyword.calls[0].batch == 15
    assert never.calls == () and never.kernel is None and "not called" in found.notes[0]
    with pytest.raises(TypeError, match="scale"):
        report(model, torch.randn(5, 8))
    assert model.training and not any(m._forward_hooks for m in model.modules())


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


def test_nothing_changes():
    model = small()
    before = copy.deepcopy(model.state_dict())
    report(model, IMAGES)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_json_and_text():
    found = report(small(), IMAGES)
    data = json.loads(found.to_json())
    assert data == found.as_dict() and data["model"] == "Sequential" and len(data["layers"]) == 3
    first = data["layers"][0]
    assert first["bytes"]["total"] == found.layers[0].bytes.total and first["size"] == [8, 8] and first["batch"] == 2
    assert data["totals"]["density"] == found.totals.density
    lines = str(found).splitlines()
    assert lines[0] == "Sequential" and lines[1].split()[:3] == ["layer", "kind", "shape"]
    row = lines[3].split()
    assert row[:6] == ["0", "MaskedConv2d", "16x8x3x3", "float32", "channels", "50.00%"]
    assert any(line.startswith("FLOP") and "active" in line for line in lines)
    assert repr(found) == "Report(Sequential, 3 layers, density 0.3417)"


@pytest.mark.parametrize(
    ("width", "columns"), [(60, ["layer", "density"]), (100, ["kernel", "bytes"]), (200, ["dtype"])]
)
def test_rich(width, columns):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width)
    model = nn.ModuleDict({"[red]name[/red]": MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.1))})
    console.print(report(model))
    text = console.file.getvalue()
    assert "[red]name[/red]" in text and "10.01%" in text and all(column in text for column in columns)
    assert max(map(len, text.splitlines())) <= width and "kernels are those of 1" in text
    console.print(report(nn.Linear(2, 2)))
    assert "maskfuse.convert" in console.file.getvalue()


def test_plain_text_needs_no_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    assert "MaskedLinear" in str(report(small()))


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = report(small())
    figure = found.plot(tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    bars, *grid = figure.get_axes()
    assert [patch.get_width() for patch in bars.patches] == [row.density for row in found.layers]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["0", "1", "3"]
    images = [axes.images[0].get_array() for axes in grid]
    assert [image.shape for image in images] == [(16, 64), (16, 64), (64, 64)]
    assert (images[0][:8] == 1).all() and (images[0][8:] == 0).all()
    for image, row in zip(images, found.layers, strict=True):
        assert float(image.mean()) == pytest.approx(row.density, abs=0.05)
    with pytest.raises(ValueError, match="nothing"):
        found.plot(tmp_path / "masks.nothing")
    with pytest.raises(OSError, match="missing"):
        found.plot(tmp_path / "missing" / "masks.png")


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib .*maskfuse\[report\]"):
        report(small()).plot()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: report({}), TypeError, "model must be an nn.Module, got dict"),
        (lambda: report(small(), batch=-1), ValueError, "batch must not be negative, got -1"),
        (lambda: report(small(), batch="3"), TypeError, "batch must be an integer, got '3'"),
        (lambda: maskfuse.explain(small()[3], batch=1.5), TypeError, r"batch must be an integer, got 1\.5"),
        (lambda: report(small(), IMAGES, batch=3), ValueError, "beside example_inputs"),
        (lambda: report(small(), torch.randn(2, 5, 8, 8)), ValueError, r"input must have shape .*8"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


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
