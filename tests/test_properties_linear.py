"""masked_linear and gated_linear on drawn shapes, strides, masks and dtypes, against float64."""

from __future__ import annotations

import torch
from conftest import DTYPES, assert_sums_close
from drawn import COLUMNS, check_examples, check_masked_gradient, check_sums, drawn_mask, laid_out, size, spoiled
from hypothesis import strategies as st
from maskfuse import Mask, gated_linear, masked_linear, reference
from maskfuse.nn import MaskedLinear


def operands(draw, few):
    """Input, weight and bias, of sizes up to a few tiles, or in Triton's interpreter of less than one."""
    dtype = draw(st.sampled_from(DTYPES))
    leading = draw(st.lists(size_of(few, 1, 7, 8, 9), max_size=2))
    most = 20 if few else 90
    out = size(draw, 0, most, 1, 16, 17)
    inp = min(size(draw, 0, most, *COLUMNS), most * 2)
    if not few and draw(st.integers(0, 3)) == 0:
        out, inp = 70 + out, 80 + inp  # enough weights for a plan
    x, w, b = torch.randn(*leading, inp), torch.randn(out, inp), torch.randn(out)
    return [laid_out(draw, t.to(dtype)) for t in (x, w, b)]


def size_of(few, *edges):
    return st.one_of(st.sampled_from(edges), st.integers(0, 3 if few else 12))


def terms(x, w):
    """Of the result, and of the gradients of input, weight and bias, and of a mask."""
    batch = x.shape[:-1].numel()
    return [w.shape[1] + 1, w.shape[0], batch, batch, batch]


def check_binary(draw, few, pieces):
    x, w, b = operands(draw, few)
    mask = drawn_mask(draw, w.shape)
    w = spoiled(draw, w, mask)

    def call(x, w, b):
        return masked_linear(x, w, mask, b)

    def exact(x, w, b):
        return reference.masked_linear(x, w, mask, b)

    got = check_sums(call, exact, (x, w, b), gradient(draw), terms(x, w)[:4], rounded=pieces and w.dtype.itemsize == 2)
    check_masked_gradient(got[2], mask)


def gradient(draw):
    return lambda y: laid_out(draw, torch.randn(y.shape).to(y.dtype))


def test_masked_linear(backend):
    # Plain PyTorch may sum half types in pieces, each rounded.
    check_examples(check_binary, backend, few=backend == "triton", pieces=backend == "reference")


def check_real_valued(draw, few, call, exact, scores=None):
    x, w, b = operands(draw, few)
    factor = laid_out(draw, torch.randn(w.shape).to(w.dtype))

    def ours(x, w, b, factor):
        return call(x, w, factor, b)

    def theirs(x, w, b, factor):
        return exact(x, w, factor, b)

    check_sums(ours, theirs, (x, w, b, factor), gradient(draw), terms(x, w), scores, rounded=w.dtype.itemsize == 2)


def test_real_valued_mask(backend):
    few = backend == "triton"
    check_examples(check_real_valued, backend, few=few, call=masked_linear, exact=reference.masked_linear)


def test_gated_linear(backend):
    few = backend == "triton"
    check_examples(check_real_valued, backend, few=few, call=gated_linear, exact=reference.gated_linear, scores=3)


def check_packed(draw):
    """A packed layer gives what the function gives, in rows of every number."""
    x, w, b = operands(draw, few=False)
    mask = drawn_mask(draw, w.shape)
    layer = MaskedLinear(w.shape[1], w.shape[0], dtype=w.dtype, mask=mask)
    with torch.no_grad():
        layer.weight.copy_(w.masked_fill(~mask.dense(), 0))
        layer.bias.copy_(b)
        packed = layer.eval().pack()(x)

    def exact(x, w, b):
        return reference.masked_linear(x, w, mask, b)

    wide = [t.double() for t in (x, w, b)]
    rounded = mask.known_full and w.dtype.itemsize == 2  # F.linear may add the bias to a product that it has rounded
    assert_sums_close(packed, exact(*wide), exact(*(t.abs() for t in wide)), w.dtype, w.shape[1] + 1, rounded)


def test_packed():
    check_examples(check_packed)


def check_all_kinds(draw):
    """A Mask, bool and integer tensors, and a floating tensor of ones and zeros are one mask."""
    x, w, b = operands(draw, few=False)
    mask = drawn_mask(draw, w.shape)
    want = masked_linear(x, w, mask, b)
    kinds = [Mask.from_dense(mask.dense()), mask.dense(), mask.dense().int()]
    for other in kinds:
        torch.testing.assert_close(masked_linear(x, w, other, b), want, equal_nan=True)


def test_masks_of_every_kind():
    check_examples(check_all_kinds)
