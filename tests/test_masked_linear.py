"""masked_linear against the reference in float64: every backend and CPU level, dtype, shape and layout."""

from __future__ import annotations

import itertools

import maskfuse
import pytest
import torch
from conftest import DTYPES, LEVELS, assert_sums_close, few, one_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from maskfuse import Mask, masked_linear, reference

SHAPES = [  # batch, out, in
    (0, 5, 7),
    (1, 1, 1),
    (1, 65, 130),
    (5, 33, 31),
    (8, 100, 64),
    (9, 64, 300),
    (37, 50, 77),
    (3, 0, 4),
    (3, 4, 0),
    (70, 129, 530),
]


def operands(batch, out, inp, dtype, density):
    x = torch.randn(batch, inp).to(dtype)
    w = torch.randn(out, inp).to(dtype)
    b = torch.randn(out).to(dtype)
    return x, w, b, Mask.random((out, inp), density)


def forward_backward(function, x, w, mask, b, grad):
    leaves = [t.detach().clone().requires_grad_() for t in (x, w, b)]
    soft = (
        [mask.detach().clone().requires_grad_()] if isinstance(mask, torch.Tensor) and mask.is_floating_point() else []
    )
    y = function(leaves[0], leaves[1], soft[0] if soft else mask, leaves[2])
    y.backward(grad)
    return [y.detach(), *[t.grad for t in leaves + soft]]


def check(x, w, mask, b, products_rounded=False):
    grad = torch.randn(*x.shape[:-1], w.shape[0]).to(x.dtype)
    wide = mask.double() if isinstance(mask, torch.Tensor) else mask
    exact = [x.double(), w.double(), wide, b.double(), grad.double()]
    sizes = [t if isinstance(t, Mask) else t.abs() for t in exact]
    got = forward_backward(masked_linear, x, w, mask, b, grad)
    want = forward_backward(reference.masked_linear, *exact)
    magnitudes = forward_backward(reference.masked_linear, *sizes)
    batch = x.numel() // max(x.shape[-1], 1)
    terms = [w.shape[1], w.shape[0], batch, batch, batch]  # of y, dx, dw, db, dmask
    for ours, theirs, magnitude, count in zip(got, want, magnitudes, terms, strict=False):
        assert ours.dtype == x.dtype and ours.shape == theirs.shape
        assert_sums_close(ours, theirs, magnitude, x.dtype, count, products_rounded)
    if isinstance(mask, Mask):
        masked = got[2][~mask.dense()]
        assert torch.equal(masked, torch.zeros_like(masked)) and not masked.signbit().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_mask(backend, shape, dtype):
    for density in few(backend, 0.1, 0.0, 0.5, 1.0):
        x, w, b, mask = operands(*shape, dtype, density)
        check(x, w, mask, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_real_valued_mask(backend, shape, dtype):
    x, w, b, _ = operands(*shape, dtype, 1.0)
    check(x, w, torch.rand_like(w), b, products_rounded=backend in ("triton", "reference"))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_generated(level, data):
    """Shapes, leading dimensions, layouts and mask structures drawn by hypothesis."""
    before = torch.ops.maskfuse.set_cpu_level(level)
    try:
        dtype = data.draw(st.sampled_from(DTYPES))
        leading = data.draw(st.lists(st.integers(0, 6), max_size=3))
        out, inp = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 140))
        density = data.draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
        mask = Mask.random((out, inp), density)
        if data.draw(st.booleans()):
            mask = mask & Mask.channels((out, inp), out=torch.rand(out) < 0.5, inp=torch.rand(inp) < 0.5)
        x = torch.randn(*leading, inp).to(dtype)
        if x.dim() > 1 and data.draw(st.booleans()):
            x = x.mT.contiguous().mT  # last dimension strided
        w = (
            torch.randn(out, 2 * inp).to(dtype)[:, :inp]
            if data.draw(st.booleans())
            else torch.randn(inp, out).to(dtype).T
        )
        check(x, w, mask, torch.randn(out).to(dtype))
    finally:
        torch.ops.maskfuse.set_cpu_level(before)


def test_layouts(backend):
    out, inp = 20, 40
    mask = Mask.random((out, inp), 0.5)
    w, b = torch.randn(out, inp), torch.randn(out)
    base = torch.randn(12, 10, 80)
    layouts = {
        "strided rows": base[::2, ::3, :inp],
        "every other column": base[:, :, ::2],
        "transposed": torch.randn(inp, 9).T,
        "broadcast": torch.randn(1, inp).expand(7, inp),
        "one dimension": torch.randn(inp),
        "four dimensions": torch.randn(2, 3, 4, inp),
    }
    for name, x in layouts.items():
        y = masked_linear(x, w, mask, b)
        assert y.shape == (*x.shape[:-1], out) and y.is_contiguous(), name
        torch.testing.assert_close(y, reference.masked_linear(x, w, mask, b), msg=name)
        check(x, w, mask, b)
    grad = torch.randn(9, 1).expand(9, out)  # sum().backward() sends expanded gradients
    x = torch.randn(9, inp, requires_grad=True)
    masked_linear(x, w, mask).backward(grad)
    torch.testing.assert_close(x.grad, grad @ torch.where(mask.dense(), w, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 8, 20])
def test_what_is_masked_may_be_nan(request, backend, dtype, batch):
    one_of(request, backend, 3)
    x, w, b, mask = operands(batch, 33, 70, dtype, 0.3)
    dense = mask.dense()
    clean = torch.where(dense, w, torch.zeros_like(w))
    grad = torch.randn(batch, 33).to(dtype)
    for poison in (float("nan"), float("inf")):
        dirty = w.masked_fill(~dense, poison)
        for got, want in zip(
            forward_backward(masked_linear, x, dirty, mask, b, grad),
            forward_backward(masked_linear, x, clean, mask, b, grad),
            strict=True,
        ):
            assert torch.equal(got, want)


def test_masks_of_every_kind_agree():
    x, w, b, mask = operands(6, 17, 40, torch.float32, 0.5)
    want = masked_linear(x, w, mask, b)
    dense = mask.dense()
    for same in (dense, dense.int(), dense.to(torch.uint8), dense.T.contiguous().T):
        assert torch.equal(masked_linear(x, w, same, b), want)
    torch.testing.assert_close(masked_linear(x, w, dense.float(), b), want)


@pytest.mark.parametrize("kernel", ["accumulate", "sampled", "tiled"])
def test_same_bits_whatever_the_threads(backend, kernel):
    """Our own kernels split no sum among threads; torch's products promise this for one number of threads only."""
    if not backend.startswith("cpu"):
        pytest.skip("has no threads of its own")
    x, w, b, mask = operands(130, 300, 520, torch.float32, 0.4)
    grad = torch.randn(130, 300)
    threads = torch.get_num_threads()
    results = []
    try:
        torch.ops.maskfuse.prefer_masked_linear_kernel(kernel)
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            y, dx, dw, _ = forward_backward(masked_linear, x, w, mask, b, grad)
            results.append([y, dx] if kernel == "accumulate" else [dw])
    finally:
        torch.set_num_threads(threads)
        torch.ops.maskfuse.prefer_masked_linear_kernel("")
    for one, two, again in zip(*results, strict=True):
        assert torch.equal(one, two) and torch.equal(one, again)


def test_levels_agree():
    """Every compiled level gives the same up to rounding, so a faulty one cannot hide behind its own test."""
    x, w, b, mask = operands(40, 90, 333, torch.float64, 0.5)
    results = []
    before = torch.ops.maskfuse.cpu_level()
    for level in LEVELS:
        torch.ops.maskfuse.set_cpu_level(level)
        results.append(masked_linear(x, w, mask, b))
    torch.ops.maskfuse.set_cpu_level(before)
    for one, other in itertools.pairwise(results):
        torch.testing.assert_close(one, other)


def test_explain_names_the_kernel_that_runs():
    layer = maskfuse.nn.MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.5))
    text = str(maskfuse.explain(layer, batch=1))
    level = torch.ops.maskfuse.cpu_level()
    assert f"row_dot {level}" in text if level != "scalar" else "naive scalar" in text
    kernels = maskfuse.explain(layer, batch=512).kernels
    assert set(kernels) == {"forward", "input_grad", "weight_grad"}
    assert all(
        kernel in [*(f"{name} {level}" for name in ("accumulate", "tiled", "library")), "naive scalar"]
        for kernel in kernels.values()
    )
    assert "reference" in maskfuse.explain(layer).ruled_out
