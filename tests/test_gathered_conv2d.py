"""The ops behind `channels=` of a convolution: values on every CPU level, derivatives, torch's checks, bad input."""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES, LEVELS
from maskfuse import ops
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck
from torch.nn import functional as F

RAW = torch.ops.maskfuse
GEOMETRY = ([2, 1], [1, 0], [1, 2])


@pytest.fixture(params=LEVELS)
def level(request):
    before = RAW.set_cpu_level(request.param)
    yield request.param
    RAW.set_cpu_level(before)


def operands(batch=3, inp=7, out=5, size=(6, 7), kernel=(3, 2), dtype=torch.float64):
    channels = torch.rand(batch, inp) > 0.5
    x, w, b = torch.randn(batch, inp, *size), torch.randn(out, inp, *kernel), torch.randn(out)
    return x.to(dtype), w.to(dtype), RAW.mask_pack(channels), b.to(dtype), channels[:, :, None, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("size", "kernel", "geometry"),
    [
        ((9, 20), (3, 3), ([1, 1], [1, 1], [1, 1])),
        ((9, 20), (2, 3), ([2, 3], [0, 2], [2, 1])),
        ((5, 6), (1, 1), ([1, 1], [0, 0], [1, 1])),
        ((1, 1), (3, 3), ([1, 1], [1, 1], [1, 1])),
        ((8, 8), (4, 4), ([4, 4], [0, 0], [1, 1])),
        ((6, 5), (3, 3), ([1, 1], [4, 3], [1, 1])),
    ],
)
def test_values(level, dtype, memory_format, size, kernel, geometry):
    """Against torch on the zeroed input in double; what is not chosen is NaN."""
    x, w, bits, b, channels = operands(4, 37, 22, size, kernel, dtype)
    exact = torch.where(channels, x, 0).double().requires_grad_()
    w_exact = w.double().requires_grad_()
    want = F.conv2d(exact, w_exact, b.double(), *geometry)
    grad = torch.randn_like(want).to(dtype).contiguous(memory_format=memory_format)
    gx, gw = torch.autograd.grad(want, (exact, w_exact), grad.double())
    x = torch.where(channels, x, torch.nan).contiguous(memory_format=memory_format)
    results = [
        (ops.gathered_conv2d(x, w, bits, b, *geometry), want),
        (ops.gathered_conv2d_input_grad(grad, w, bits, list(size), *geometry), torch.where(channels, gx, 0)),
        (ops.gathered_conv2d_weight_grad(grad, x, bits, list(kernel), *geometry), gw),
    ]
    bound = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for got, exactly in results:
        assert got.dtype == dtype and got.shape == exactly.shape
        assert (got.double() - exactly).abs().max() <= bound * exactly.abs().max()
    assert not results[1][0][~channels.expand_as(gx)].any()
    if size != (1, 1):
        assert all(result.is_contiguous(memory_format=memory_format) for result, _ in results[:2])


def test_large_dilation(level):
    """More rows than are worth staging: torch's convolution, and the same numbers."""
    x, w, bits, b, channels = operands(2, 5, 4, (7, 7), (3, 3), torch.float32)
    geometry = ([1, 1], [20000, 20000], [20000, 20000])
    want = F.conv2d(torch.where(channels, x, 0), w, b, *geometry)
    torch.testing.assert_close(ops.gathered_conv2d(x, w, bits, b, *geometry), want, atol=1e-5, rtol=1e-5)


def test_same_bits_for_any_number_of_threads(level):
    x, w, bits, b, _ = operands(3, 40, 30, (14, 14), (3, 3), torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = ops.gathered_conv2d(x, w, bits, b, [1, 1], [1, 1], [1, 1])
        results.append((y, ops.gathered_conv2d_input_grad(y, w, bits, [14, 14], [1, 1], [1, 1], [1, 1])))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_derivatives(level):
    x, w, bits, b, _ = operands()
    leaves = tuple(t.requires_grad_() for t in (x, w, b))

    def forward(x, w, b):
        return ops.gathered_conv2d(x, w, bits, b, *GEOMETRY)

    assert gradcheck(forward, leaves, check_forward_ad=True)
    assert gradgradcheck(forward, leaves)


def test_opcheck():
    x, w, bits, b, _ = operands()
    y = RAW.gathered_conv2d(x, w, bits, b, *GEOMETRY)
    samples = [
        (RAW.gathered_conv2d, (x, w, bits, b, *GEOMETRY)),
        (RAW.gathered_conv2d, (x.requires_grad_(), w.requires_grad_(), bits, None, *GEOMETRY)),
        (RAW.gathered_conv2d_input_grad, (y.detach(), w, bits, [6, 7], *GEOMETRY)),
        (RAW.gathered_conv2d_weight_grad, (y.detach(), x, bits, [3, 2], *GEOMETRY)),
    ]
    for op, args in samples:
        opcheck(op.default, args)


def test_vmap():
    x, w, _, b, _ = operands()
    xs, several = torch.randn(2, *x.shape, dtype=x.dtype), torch.rand(2, *x.shape[:2]) > 0.5
    bits = torch.stack([RAW.mask_pack(channels) for channels in several])
    got = vmap(lambda x, bits: ops.gathered_conv2d(x, w, bits, b, *GEOMETRY))(xs, bits)
    for i in range(2):
        torch.testing.assert_close(got[i], ops.gathered_conv2d(xs[i], w, bits[i], b, *GEOMETRY))


@pytest.mark.parametrize("shape", [(0, 7, 6, 7), (3, 0, 6, 7)], ids=["no images", "no channels"])
def test_empty(level, shape):
    x, w, b = torch.randn(shape), torch.randn(5, shape[1], 3, 2), torch.randn(5)
    bits = RAW.mask_pack(torch.ones(shape[:2], dtype=torch.bool))
    y = ops.gathered_conv2d(x, w, bits, b, *GEOMETRY)
    assert y.shape == (shape[0], 5, 3, 5)
    torch.testing.assert_close(y, b[:, None, None].expand_as(y))
    assert not ops.gathered_conv2d_input_grad(y, w, bits, [6, 7], *GEOMETRY).any()
    assert not ops.gathered_conv2d_weight_grad(y, x, bits, [3, 2], *GEOMETRY).any()


X, W, BITS, B, _ = operands(dtype=torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: RAW.gathered_conv2d(X[0], W, BITS, B, *GEOMETRY),
            r"\[batch, channels, height, width\], got \[7, 6, 7\]",
        ),
        (lambda: RAW.gathered_conv2d(X[:, :6], W, BITS, B, *GEOMETRY), "does not fit weight"),
        (lambda: RAW.gathered_conv2d(X, W, BITS[:2], B, *GEOMETRY), r"bits must have shape \[3, 1\], got \[2, 1\]"),
        (lambda: RAW.gathered_conv2d(X, W.double(), BITS, B, *GEOMETRY), "the same dtype"),
        (lambda: RAW.gathered_conv2d(X, W, BITS, B[:2], *GEOMETRY), r"bias must have shape \[5\], got \[2\]"),
        (lambda: RAW.gathered_conv2d(X, W, BITS, B, [0, 1], [0, 0], [1, 1]), "stride must be two integers, at least 1"),
        (lambda: RAW.gathered_conv2d(X, W, BITS, B, [1, 1], [0, 0], [9, 9]), "larger than the padded input"),
        (lambda: RAW.gathered_conv2d_input_grad(X, W, BITS, [6, 7], *GEOMETRY), r"grad must have shape \[3, 5, 3, 5\]"),
        (
            lambda: RAW.gathered_conv2d_weight_grad(X, X, BITS, [3, 2], *GEOMETRY),
            r"grad must have shape \[3, 7, 3, 5\]",
        ),
        (lambda: RAW.gathered_conv2d_weight_grad(X, X, BITS, [3], *GEOMETRY), "kernel_size must be two integers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
