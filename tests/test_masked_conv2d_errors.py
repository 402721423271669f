"""What masked_conv2d refuses, and what explain says of it."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from convolutions import GEOMETRIES, OPS, operands, preferring, shifts
from maskfuse import Mask, masked_conv2d
from torch.nn import functional as F


def test_a_plan_of_fewer_weights_is_refused():
    x, w, _ = operands((2, 40, 40, (3, 3), 9, 14))
    plan, many = Mask.random(w.shape, 0.1), Mask.random(w.shape, 0.3)
    with preferring("shifted"):
        if not shifts((3, 3), 1, 1, 1):
            pytest.skip("vectors only")
        with pytest.raises(RuntimeError, match="plan is of a mask that has fewer weights than bits"):
            torch.ops.maskfuse.masked_conv2d(x, w, many.bits, plan.plan, None, [1, 1], [1, 1], [1, 1], 1)


BAD = {
    "integer input": (lambda x, w, m: (x.int(), w, m), TypeError, "input must be float32"),
    "weight of three dimensions": (lambda x, w, m: (x, w[0], m), ValueError, r"weight must have shape \[out, in"),
    "channels": (lambda x, w, m: (x[:, :5], w, m), ValueError, r"input must have shape \[batch, 8, .* \[2, 5, 6, 6\]"),
    "dimensions": (lambda x, w, m: (x[0, 0], w, m), ValueError, r"input must have shape"),
    "mask": (lambda x, w, m: (x, w, m[:3]), ValueError, r"mask must have the shape of weight, \[4, 8, 3, 3\]"),
    "bias": (lambda x, w, m: (x, w, m, torch.zeros(3)), ValueError, r"bias must have shape \[4\], got"),
    "dtypes": (lambda x, w, m: (x.double(), w, m), TypeError, "input and weight must have one dtype"),
    "stride": (lambda x, w, m: (x, w, m, None, 0), ValueError, "stride must be an integer or two of them, at least 1"),
    "three strides": (lambda x, w, m: (x, w, m, None, (1, 1, 1)), ValueError, "stride must be"),
    "padding": (lambda x, w, m: (x, w, m, None, 1, -1), ValueError, "padding must be .* at least 0"),
    "named padding": (lambda x, w, m: (x, w, m, None, 1, "full"), ValueError, "'valid' or 'same', got 'full'"),
    "same with stride": (lambda x, w, m: (x, w, m, None, 2, "same"), ValueError, "needs a stride of 1"),
    "dilation": (lambda x, w, m: (x, w, m, None, 1, 0, 4), ValueError, "exceed the padded input"),
    "groups": (lambda x, w, m: (x, w, m, None, 1, 0, 1, 3), ValueError, "groups must be a divisor of the 4 output"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(make, error, message):
    arguments = make(torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3), torch.ones(4, 8, 3, 3, dtype=torch.bool))
    with pytest.raises(error, match=message):
        masked_conv2d(*arguments)


def test_ops_refuse_what_does_not_fit():
    x, w, b = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    one = [1, 1]
    other = Mask.random((17, 33, 1, 9), 0.3).bits[:, :5]
    for arguments, message in (
        ((x, w, other, [], None, one, one, one, 1), "bits must have shape"),
        ((x, w, mask.bits, mask.plan[:1], None, one, one, one, 1), "plan must have no tensors"),
        ((x, w, mask.bits, mask.plan[::-1], None, one, one, one, 1), r"plan\[0\] is not the plan"),
        ((x, w, mask.bits, [], None, [1], one, one, 1), "stride must be two integers"),
        ((x, w, mask.bits, [], b[:3], one, one, one, 1), "bias must have shape"),
        ((x[:, 1:], w, mask.bits, [], None, one, one, one, 1), "does not fit weight"),
        ((x.double(), w, mask.bits, [], None, one, one, one, 1), "same dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.masked_conv2d(*arguments)
    with pytest.raises(RuntimeError, match="grad must have shape"):
        OPS.masked_conv2d_input_grad(x, w, mask.bits, [], [9, 14], one, one, one, 1)
    with pytest.raises(RuntimeError, match="there is no kernel"):
        OPS.prefer_masked_conv2d_kernel("fast")


def test_backends(monkeypatch):
    x, w, _ = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    want = masked_conv2d(x, w, mask, padding=1)
    with maskfuse.use_backend("reference"):
        torch.testing.assert_close(masked_conv2d(x, w, mask, padding=1), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(F.conv2d(x, w * mask.dense(), padding=1), want, atol=1e-4, rtol=1e-4)


def test_explain_names_what_runs():
    mask = Mask.random((256, 256, 3, 3), 0.05)
    explained = maskfuse.explain(mask, batch=8, size=(14, 14))
    assert explained.op == "masked_conv2d"
    if maskfuse.build_info()["cpu_level"] != "scalar":
        assert explained.kernels["forward"].split()[0] in ("accumulate", "shifted")
        assert {"accumulate", "shifted"} <= set(explained.estimates["forward"])
        assert explained.kernels["weight_grad"].startswith("sampled")
        last = maskfuse.explain(mask, batch=8, size=(14, 14), memory_format=torch.channels_last)
        assert last.estimates["forward"]["library"] < explained.estimates["forward"]["library"]
    layer = maskfuse.nn.MaskedConv2d(256, 256, 3, stride=2, padding="valid", groups=1, mask=mask)
    assert set(maskfuse.explain(layer, 2, size=(9, 9)).kernels) == {"forward", "input_grad", "weight_grad"}
    grouped = maskfuse.nn.MaskedConv2d(32, 32, 3, groups=2, padding="same", mask=Mask.random((32, 16, 3, 3), 0.1))
    assert "accumulate" not in str(maskfuse.explain(grouped, 2, size=(9, 9)).kernels)
    assert maskfuse.explain(Mask.full((8, 8, 3, 3)), size=(9, 9)).kernels["forward"] == "F.conv2d"
    with preferring("library"):
        assert maskfuse.explain(layer, 2, size=(9, 9)).kernels["forward"].split()[0] in ("library", "naive")
    for bad in (None, (9,), (2, 2)):
        with pytest.raises(ValueError, match="size"):
            maskfuse.explain(layer, size=bad)


def test_raw_ops_without_channels():
    x, w = torch.randn(2, 0, 5, 6), torch.randn(4, 0, 3, 3)
    args = Mask.full(w.shape).bits, []
    one, none = [1, 1], [0, 0]
    ops = torch.ops.maskfuse
    y = ops.masked_conv2d(x, w, *args, torch.arange(4.0), one, none, one, 1)
    assert y.shape == (2, 4, 3, 4) and y[:, 2].eq(2).all()
    assert ops.masked_conv2d_input_grad(y, w, *args, [5, 6], one, none, one, 1).shape == x.shape
    assert ops.masked_conv2d_weight_grad(y, x, *args, [3, 3], one, none, one, 1).shape == w.shape


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_geometry_is_checked(name):
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    for value in (1.5, None, torch.tensor(1), [1, 2.0]):
        with pytest.raises(TypeError, match=f"{name} must be an integer or two of them, got"):
            masked_conv2d(x, w, Mask.full(w.shape), **{name: value})
    for value in (2**31, (1, 2**62), [1, 1, 1], -1):
        with pytest.raises(ValueError, match=f"{name} must be an integer or two of them, at least . and below 2\\^31"):
            masked_conv2d(x, w, Mask.full(w.shape), **{name: value})
    raw = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]} | {name: [2**62, 1]}
    with pytest.raises(RuntimeError, match=f"{name} must be two integers, at least . and below 2\\^31"):
        torch.ops.maskfuse.masked_conv2d(x, w, Mask.full(w.shape).bits, [], None, *raw.values(), 1)
