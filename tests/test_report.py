"""report: rows, sums and kernels of models, and what it looks like."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from maskfuse import Mask, report
from maskfuse.nn import (
    MaskedLinear,
)
from reported import IMAGES, small
from torch import nn


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


def test_nothing_changes():
    model = small()
    before = copy.deepcopy(model.state_dict())
    report(model, IMAGES)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


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
