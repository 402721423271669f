"""Each mistake gets one clear exception, from the functions and, below them, from the ops."""

from __future__ import annotations

import pytest
import torch
from maskfuse import Mask, masked_linear
from maskfuse.nn import MaskedLinear

X, W, B, M = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5), torch.ones(5, 8, dtype=torch.bool)
BITS = Mask.from_dense(M).bits


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masked_linear(X, W, M.T), ValueError, r"\[5, 8\], got \[8, 5\].*weights are \[out, in\].*\[in, out\]"),
        (lambda: masked_linear(X, W, Mask.full((8, 5))), ValueError, r"weights are \[out, in\]"),
        (
            lambda: masked_linear(X, W, M[:4]),
            ValueError,
            r"mask must have the shape of weight, \[5, 8\], got \[4, 8\]$",
        ),
        (lambda: masked_linear(X, W, None), TypeError, "mask must be a maskfuse.Mask or a tensor, got NoneType"),
        (
            lambda: masked_linear(X, W, M.double()),
            TypeError,
            r"float64 tensor \[5, 8\] for float32 tensor \[5, 8\].*bool",
        ),
        (lambda: masked_linear(X, W, M.int() * 3), ValueError, r"0 or 1 everywhere \(mask is int32 tensor \[5, 8\]\)"),
        (lambda: masked_linear(X, W, M.to(torch.complex64)), TypeError, "complex64"),
        (lambda: masked_linear(X[:, :7], W, M), ValueError, r"input must have shape \[..., 8\].*got \[3, 7\]"),
        (lambda: masked_linear(torch.tensor(1.0), W, M), ValueError, r"input must have shape .*got \[\]"),
        (lambda: masked_linear(X.double(), W, M), TypeError, r"input and weight.*float64 tensor \[3, 8\] and float32"),
        (lambda: masked_linear(X.int(), W, M), TypeError, "input must be float32.*got int32"),
        (lambda: masked_linear(X, W.to(torch.complex64), M), TypeError, "weight must be float32.*complex64"),
        (lambda: masked_linear(X, W[0], M[0]), ValueError, r"weight must have shape \[out, in\], got \[8\]"),
        (lambda: masked_linear(X, W, M, B[:4]), ValueError, r"bias must have shape \[5\], got float32 tensor \[4\]"),
        (lambda: masked_linear(X, W, M, B.double()), TypeError, "bias and weight must have one dtype"),
        (lambda: masked_linear([1.0], W, M), TypeError, "input must be a tensor, got list"),
        (
            lambda: masked_linear(X.to("meta"), W, M),
            ValueError,
            "input and weight must be on one device, got meta and cpu",
        ),
        (
            lambda: masked_linear(X, W.to("meta"), M),
            ValueError,
            "mask and weight must be on one device, got cpu and meta",
        ),
        (lambda: masked_linear(X, W.to("meta"), Mask.from_dense(M)), ValueError, "input and weight.*got cpu and meta"),
        (lambda: masked_linear(X, W, Mask.from_dense(M).to("meta")), ValueError, "mask and weight.*got meta and cpu"),
        (lambda: masked_linear(X, W, M, B.to("meta")), ValueError, "bias and weight must be on one device"),
        (lambda: masked_linear(X, W, W.to("meta")), ValueError, "mask and weight must be on one device"),
    ],
)
def test_function(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_meta_with_meta():
    """Shapes without values; the mask's bits may have theirs."""
    y = masked_linear(X.to("meta"), W.to("meta"), Mask.from_dense(M), B.to("meta"))
    assert y.is_meta and y.shape == (3, 5)
    layer = MaskedLinear(8, 5, device="meta")
    with pytest.raises(ValueError, match="got cpu and meta"):
        layer(X)


ops = torch.ops.maskfuse
PLAN = [ops.mask_plan(BITS, 8, 0), ops.mask_plan(ops.mask_transpose(BITS, 8, 1), 5, 0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.masked_linear(X[:, :7], W, BITS, [], None), r"input \[3, 7\] does not fit weight \[5, 8\]"),
        (lambda: ops.masked_linear(X, W[0], BITS, [], None), r"weight must have shape \[out, in\], got \[8\]"),
        (lambda: ops.masked_linear(X, W, BITS[:4], [], None), r"bits must have shape \[5, 1\], got \[4, 1\]"),
        (lambda: ops.masked_linear(X, W, BITS.long(), [], None), "bits must be Int, got Long"),
        (lambda: ops.masked_linear(X.double(), W, BITS, [], None), "the same dtype"),
        (lambda: ops.masked_linear(X, W, BITS, [], B[:2]), r"bias must have shape \[5\], got \[2\]"),
        (lambda: ops.masked_linear(X.int(), W.int(), BITS, [], None), "must be float32, float64, bfloat16 or float16"),
        (lambda: ops.masked_linear(X[0, 0], W, BITS, [], None), "at least one dimension"),
        (lambda: ops.masked_linear_input_grad(X, W, BITS, []), r"grad \[3, 8\] does not fit weight \[5, 8\]"),
        (lambda: ops.masked_linear_weight_grad(X[:2, :5], X, BITS, []), "same leading dimensions"),
        (lambda: ops.soft_masked_linear(X, W, W.T, None), r"mask must have shape \[5, 8\], got \[8, 5\]"),
        (lambda: ops.soft_masked_linear(X, W, W.double(), None), "the same dtype"),
        (lambda: ops.masked_linear(X, W, BITS, PLAN[:1], None), "plan must have no tensors, 2, or 6 .*, got 1"),
        (lambda: ops.masked_linear(X, W, BITS, PLAN[::-1], None), r"plan\[0\] is not the plan of a mask .* \[5, 8\]"),
        (lambda: ops.masked_linear_input_grad(X[:, :5], W, BITS, [PLAN[0]] * 2), r"plan\[1\] is not the plan"),
        (lambda: ops.masked_linear(X, W, BITS, [t[:-1] for t in PLAN], None), "is not the plan"),
        (lambda: ops.masked_linear(X, W, BITS, [*PLAN, B, B, B, B], None), "plan does not hold a packed weight"),
        (lambda: ops.masked_linear_pack(W, BITS[:4], []), r"bits must have shape \[5, 1\], got \[4, 1\]"),
        (lambda: ops.masked_linear_pack(W.int(), BITS, []), "must be float32, float64, bfloat16 or float16"),
        (lambda: ops.mask_plan(BITS, 99, 0), r"bits must have shape \[5, 4\], got \[5, 1\]"),
        (lambda: ops.mask_transpose(BITS, 8, 3), "taps 3 must divide 8 columns"),
        (lambda: ops.mask_plan(BITS, 8, -1), "taps must not be negative, got -1"),
        (lambda: ops.mask_transpose(BITS, 99, 1), r"bits must have shape \[5, 4\], got \[5, 1\]"),
        (lambda: ops.mask_pack(W), "dense must be Bool, got Float"),
        (lambda: ops.mask_pack(M[0]), r"\[rows, columns\], got \[8\]"),
        (lambda: ops.mask_unpack(BITS, 99), r"bits must have shape \[5, 4\], got \[5, 1\]"),
        (lambda: ops.mask_structure(BITS, 8, 3), "multiple of inner"),
        (
            lambda: ops.masked_linear_candidates("sideways", 1, BITS, 8, [], torch.float32),
            "forward, input_grad or weight_grad",
        ),
        (lambda: ops.prefer_masked_linear_kernel("fastest"), "no kernel fastest"),
        (lambda: ops.set_cpu_level("sse9"), "expected scalar, avx2 or avx512"),
    ],
)
def test_ops_refuse_what_the_functions_would_not_send(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
