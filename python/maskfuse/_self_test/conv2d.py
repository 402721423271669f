"""Checks of the convolutions: every pass and dtype, contiguous and channels_last, in groups, strided and dilated."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .. import reference
from .compare import (
    HALF,
    RIGHT_PERIOD,
    Operands,
    Sums,
    close,
    close_periodic,
    dtypes,
    has_kernel,
    packed,
    plans,
    repeating,
    side_of_large,
    zero,
)


class Conv(NamedTuple):
    """Sizes and geometry; `size` and `kernel` are height and width."""

    batch: int
    inp: int
    out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups as the ops take them."""
        return [self.stride] * 2, [self.padding] * 2, [self.dilation] * 2, self.groups

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`[out, in / groups, height, width]`."""
        return (self.out, self.inp // self.groups, *self.kernel)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        height, width = (
            (s + 2 * self.padding - self.dilation * (k - 1) - 1) // self.stride + 1
            for s, k in zip(self.size, self.kernel, strict=True)
        )
        return height, width


# Depths that are cut in parts, of taps and of pixels; groups with a stride and a dilation; a kernel of a single
# pixel that meets every pixel, which is a product of matrices, and one that does not.
CONVS = (
    Conv(2, 70, 37, (7, 6), (3, 3), padding=1),
    Conv(2, 24, 20, (9, 8), (3, 2), stride=2, padding=2, dilation=2, groups=2, memory_format=torch.channels_last),
    Conv(12, 37, 70, (7, 7), (1, 1), memory_format=torch.channels_last),
    Conv(12, 37, 70, (14, 14), (1, 1), stride=2, memory_format=torch.channels_last),
)


def sums_of(conv: Conv, x: Tensor, w: Tensor, b: Tensor, dy: Tensor, dense: Tensor) -> list[Sums]:
    """Output, input gradient and weight gradient."""

    def sums(x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> list[Tensor]:
        effective = torch.where(dense, w, w.new_zeros(()))
        return [
            reference.masked_conv2d(x, w, dense, b, *conv.geometry),
            conv2d_input(x.shape, effective, dy, *conv.geometry),
            conv2d_weight(x, w.shape, dy, *conv.geometry) * dense,
        ]

    exact = [t.double() for t in (x, w, b, dy)]
    return [Sums(*pair) for pair in zip(sums(*exact), sums(*(t.abs() for t in exact)), strict=True)]


def masked_conv2d(ops: Any, device: torch.device) -> None:
    """Binary masks. Masked weights are NaN, which must not be read into any sum."""
    o = Operands(device)
    for dtype in dtypes(ops):
        for conv in CONVS:
            _passes(ops, o, conv, dtype)
        if dtype in HALF and has_kernel(ops, "mask_lists", device):
            _large(ops, o, dtype)


def _passes(ops: Any, o: Operands, conv: Conv, dtype: torch.dtype) -> None:
    x, w = o.normal(conv.batch, conv.inp, *conv.size, dtype=dtype), o.normal(*conv.weight_shape, dtype=dtype)
    b, dy = o.normal(conv.out, dtype=dtype), o.normal(conv.batch, conv.out, *conv.output_size, dtype=dtype)
    dense = o.flags(*conv.weight_shape)
    want = sums_of(conv, x, w, b, dy, dense)
    taps = conv.kernel[0] * conv.kernel[1]
    rows, columns = conv.out, conv.inp // conv.groups * taps
    terms = (columns + 1, conv.out // conv.groups * taps, dy.numel() // conv.out)

    xd, dyd = (t.to(o.device).contiguous(memory_format=conv.memory_format) for t in (x, dy))
    wd, bd, bits = o.there(w.masked_fill(~dense, torch.nan), b, packed(dense.reshape(rows, columns)))
    for plan in plans(ops, bits, columns, taps) if conv.groups == 1 else [[]]:
        o.poison(*dy.shape, dtype=dtype)
        y = ops.masked_conv2d(xd, wd, bits, plan, bd, *conv.geometry)
        close("forward", y, want[0], dtype, terms[0])
        o.poison(*x.shape, dtype=dtype)
        dx = ops.masked_conv2d_input_grad(dyd, wd, bits, plan, list(conv.size), *conv.geometry)
        close("input_grad", dx, want[1], dtype, terms[1])
        o.poison(*w.shape, dtype=dtype)
        dw = ops.masked_conv2d_weight_grad(dyd, xd, bits, plan, list(conv.kernel), *conv.geometry)
        close("weight_grad", dw, want[2], dtype, terms[2])
        zero("weight_grad", dw, ~dense)


def _large(ops: Any, o: Operands, dtype: torch.dtype) -> None:
    """Tiles of 128 x 128 on tensor cores: of many images, three over and over, and many channels."""
    side = side_of_large(o.device)
    conv = Conv(3, 24, RIGHT_PERIOD, (5, 5), (3, 3), padding=1)
    images = repeating(3, -(-side // 25), o.device)
    channels = repeating(RIGHT_PERIOD, side, o.device)

    def pixels(image: Tensor) -> Tensor:
        return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])

    x, w, dense = (
        o.normal(3, 24, 5, 5, dtype=dtype),
        o.normal(*conv.weight_shape, dtype=dtype),
        o.flags(*conv.weight_shape),
    )
    xd, wd, flags = o.there(x, w.masked_fill(~dense, torch.nan), dense)
    bits = packed(flags.flatten(1))
    y = ops.masked_conv2d(xd[images], wd[channels], bits[channels], [], None, *conv.geometry)
    want = Sums(
        *(
            pixels(reference.masked_conv2d(a, b, dense, None, *conv.geometry))
            for a, b in ((x.double(), w.double()), (x.double().abs(), w.double().abs()))
        )
    )
    close_periodic("forward of large tiles", pixels(y), want, dtype, 216)

    # The same operands for the other gradient: a weight with as many input channels.
    dy, w, dense = x, w.transpose(0, 1), dense.transpose(0, 1)
    wd, flags = o.there(w.masked_fill(~dense, torch.nan), dense)
    bits = packed(flags[:, channels].flatten(1))
    dx = ops.masked_conv2d_input_grad(xd[images], wd[:, channels], bits, [], [5, 5], *conv.geometry)
    effective = torch.where(dense, w, w.new_zeros(())).double()
    want = Sums(
        *(
            pixels(conv2d_input((3, RIGHT_PERIOD, 5, 5), b, a, *conv.geometry[:3]))
            for a, b in ((dy.double(), effective), (dy.double().abs(), effective.abs()))
        )
    )
    close_periodic("input_grad of large tiles", pixels(dx), want, dtype, 216)

    # At a stride: otherwise it would be a product of matrices, and another kernel's.
    dy, x = o.normal(2, 61, 6, 6, dtype=dtype), o.normal(2, RIGHT_PERIOD, 11, 11, dtype=dtype)
    dense = o.flags(61, RIGHT_PERIOD)
    dyd, xd, flags = o.there(dy, x, dense)
    down = repeating(61, side, o.device)
    bits = packed(flags[down][:, channels])
    dw = ops.masked_conv2d_weight_grad(dyd[:, down], xd[:, channels], bits, [], [1, 1], [2, 2], [0, 0], [1, 1], 1)
    want = Sums(
        *(
            conv2d_weight(a, (61, RIGHT_PERIOD, 1, 1), b, stride=2).flatten(1) * dense
            for a, b in ((x.double(), dy.double()), (x.double().abs(), dy.double().abs()))
        )
    )
    close_periodic("weight_grad of large tiles", dw.flatten(1), want, dtype, 72)
