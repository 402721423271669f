"""Convolutions of many geometries, and how results are compared."""

from __future__ import annotations

import contextlib

import torch
from conftest import assert_sums_close
from maskfuse import Mask, masked_conv2d, reference

OPS = torch.ops.maskfuse
# batch, in, out, kernel, height, width, stride, padding, dilation
GEOMETRIES = {
    "3x3": (2, 33, 17, (3, 3), 9, 14, 1, 1, 1),
    "1x1": (3, 70, 64, (1, 1), 5, 7, 1, 0, 1),
    "1x1 of one pixel": (5, 70, 64, (1, 1), 1, 1, 1, 0, 1),
    "1x1 with stride": (2, 64, 70, (1, 1), 9, 8, 2, 0, 1),
    "1x1 with padding": (2, 64, 70, (1, 1), 3, 4, 1, 1, 1),
    "one image": (1, 32, 16, (3, 3), 30, 20, 1, 1, 1),
    "stride 2": (2, 16, 40, (3, 3), 15, 17, 2, 1, 1),
    "stride 3 beyond the kernel": (2, 32, 40, (2, 2), 13, 16, 3, 0, 1),
    "strides that differ": (2, 20, 30, (3, 3), 12, 12, (2, 1), (0, 2), 1),
    "dilation": (2, 20, 30, (3, 3), 14, 13, 1, 2, 2),
    "dilation and stride": (2, 20, 30, (3, 3), 14, 13, 2, 3, (3, 2)),
    "even kernel": (2, 33, 40, (2, 4), 7, 9, 1, 1, 1),
    "7x7": (1, 8, 20, (7, 7), 23, 20, 2, 3, 1),
    "column kernel": (2, 40, 40, (3, 1), 8, 5, 1, (1, 0), 1),
    "row kernel": (2, 40, 40, (1, 3), 8, 5, 1, (0, 1), 1),
    "padding beyond the kernel": (2, 20, 30, (3, 3), 4, 4, 1, 4, 1),
    "kernel larger than the image": (2, 20, 30, (5, 5), 2, 3, 1, 2, 1),
    "one column": (3, 20, 30, (3, 3), 20, 1, 1, 1, 1),
    "many small images": (9, 30, 20, (3, 3), 3, 3, 1, 1, 1),
}
STRUCTURES = {
    "sparse": lambda shape: Mask.random(shape, 0.1),
    "half": lambda shape: Mask.random(shape, 0.5),
    "dense": lambda shape: Mask.random(shape, 0.9),
    "channels": lambda shape: Mask.channels(shape, torch.rand(shape[0]) < 0.5, torch.rand(shape[1]) < 0.5),
    "most channels": lambda shape: Mask.channels(shape, torch.rand(shape[0]) < 0.9, torch.rand(shape[1]) < 0.95),
    "kernels": lambda shape: Mask.from_dense((torch.rand(*shape[:2], 1, 1) < 0.3).expand(shape)),
    "empty": lambda shape: Mask.full(shape, active=False),
    "full": lambda shape: Mask.full(shape),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def operands(geometry, dtype=torch.float32, memory_format=torch.contiguous_format, groups=1):
    batch, inp, out, kernel, height, width, *_ = geometry
    x = torch.randn(batch, inp * groups, height, width).to(dtype).to(memory_format=memory_format)
    return x, torch.randn(out * groups, inp, *kernel).to(dtype), torch.randn(out * groups).to(dtype)


def check(x, w, mask, b, *geometry):
    """Compares output and gradients, in the operands' dtype, with the reference in float64."""
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    y = masked_conv2d(x, w, mask, b, *geometry)
    grad = torch.randn_like(y)
    got = (y, *torch.autograd.grad(y, (x, w, b), grad))

    def exact(*tensors):
        x, w, b, grad = (t.detach().double().requires_grad_() for t in tensors)
        y = reference.masked_conv2d(x, w, mask, b, *geometry)
        return (y.detach(), *torch.autograd.grad(y, (x, w, b), grad))

    want, magnitude = exact(x, w, b, grad), exact(x.abs(), w.abs(), b.abs(), grad.abs())
    taps, pixels = w[0].numel(), y.shape[0] * y.shape[2] * y.shape[3]
    for one, other, size, terms in zip(got, want, magnitude, (taps, taps * w.shape[0], pixels, pixels), strict=True):
        assert one.shape == other.shape and one.dtype == x.dtype
        # Plain PyTorch may sum half types in pieces of its own, each rounded.
        assert_sums_close(one, other, size, x.dtype, terms, products_rounded=x.dtype.itemsize == 2)
    assert not got[2][~mask.dense()].any()
    return got


@contextlib.contextmanager
def preferring(kernel: str):
    OPS.prefer_masked_conv2d_kernel(kernel)
    try:
        yield
    finally:
        OPS.prefer_masked_conv2d_kernel("")


def shifts(kernel, stride, padding, dilation, direction="forward", groups=1):
    """Whether `shifted` could run a convolution of 80 channels."""
    mask = Mask.random((80, 80 // groups, *kernel), 0.3)
    about = [2, 80, 15, 15], [*kernel], mask.bits, mask.plan, [1, stride], [0, padding], [1, dilation], groups
    listed = torch.ops.maskfuse.masked_conv2d_candidates(direction, *about, torch.float32, False)
    return "shifted" in [line.split()[0] for line in listed.splitlines()]
