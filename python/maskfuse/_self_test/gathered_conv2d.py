"""Checks of convolutions of chosen channels."""

from __future__ import annotations

from typing import Any

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
    repeating,
    side_of_large,
    zero,
)
from .conv2d import CONVS, Conv, sums_of

# More channels than a tile has columns, at a stride: blocks of channels that an image leaves out are of its own.
_GATHERED_CONVS = (
    CONVS[0],
    Conv(3, 150, 20, (9, 8), (3, 2), stride=2, padding=2, dilation=2, memory_format=torch.channels_last),
    CONVS[2],
)


def gathered_conv2d(ops: Any, device: torch.device) -> None:
    """Channels that each image chooses. What is not chosen is NaN, which must not be read into any sum."""
    o = Operands(device)
    if not has_kernel(ops, "mask_lists", device):  # the CPU's kernel, which computes in these
        for dtype in (torch.float32, torch.float64):
            _gathered(ops, o, CONVS[0], dtype, o.flags(CONVS[0].batch, CONVS[0].inp))
        return
    for dtype in dtypes(ops):
        for conv in _GATHERED_CONVS:
            chosen = o.flags(conv.batch, conv.inp)
            chosen[0, 64:128] = False
            chosen[1] = False
            _gathered(ops, o, conv, dtype, chosen)
            _gathered(ops, o, conv, dtype, chosen[:1])
        if dtype in HALF:
            _large_gathered(ops, o, dtype)


def _gathered(ops: Any, o: Operands, conv: Conv, dtype: torch.dtype, chosen: Tensor) -> None:
    geometry = conv.geometry[:3]
    x, w = o.normal(conv.batch, conv.inp, *conv.size, dtype=dtype), o.normal(*conv.weight_shape, dtype=dtype)
    b, dy = o.normal(conv.out, dtype=dtype), o.normal(conv.batch, conv.out, *conv.output_size, dtype=dtype)
    flags = chosen[..., None, None].expand(x.shape)
    want = sums_of(conv, x * flags, w, b, dy, torch.ones(w.shape, dtype=torch.bool))
    want[1] = want[1].times(flags)
    taps = conv.kernel[0] * conv.kernel[1]
    wd, bd, bits = o.there(w, b, packed(chosen))
    x = x.masked_fill(~flags, torch.nan)
    xd, dyd = (t.to(o.device).contiguous(memory_format=conv.memory_format) for t in (x, dy))
    o.poison(*dy.shape, dtype=dtype)
    y = ops.gathered_conv2d(xd, wd, bits, bd, *geometry)
    close("forward", y, want[0], dtype, taps * conv.inp + 1)
    o.poison(*x.shape, dtype=dtype)
    dx = ops.gathered_conv2d_input_grad(dyd, wd, bits, list(conv.size), *geometry)
    close("input_grad", dx, want[1], dtype, taps * conv.out)
    zero("input_grad", dx, ~flags)
    o.poison(*w.shape, dtype=dtype)
    dw = ops.gathered_conv2d_weight_grad(dyd, xd, bits, list(conv.kernel), *geometry)
    close("weight_grad", dw, want[2], dtype, dy.numel() // conv.out)


def _large_gathered(ops: Any, o: Operands, dtype: torch.dtype) -> None:
    """Tiles of 128 x 128 on tensor cores, as in `_large`."""
    side = side_of_large(o.device)
    conv = Conv(3, 24, RIGHT_PERIOD, (5, 5), (3, 3), padding=1)
    geometry = conv.geometry[:3]
    images = repeating(3, -(-side // 25), o.device)
    channels = repeating(RIGHT_PERIOD, side, o.device)

    def pixels(image: Tensor) -> Tensor:
        return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])

    x, w, chosen = o.normal(3, 24, 5, 5, dtype=dtype), o.normal(*conv.weight_shape, dtype=dtype), o.flags(3, 24)
    flags = chosen[..., None, None].expand(x.shape)
    xd, wd, bits = o.there(x.masked_fill(~flags, torch.nan), w, packed(chosen))
    y = ops.gathered_conv2d(xd[images], wd[channels], bits[images], None, *geometry)
    operands = ((x * flags).double(), w.double()), ((x * flags).double().abs(), w.double().abs())
    full = torch.ones(w.shape, dtype=torch.bool)
    want = Sums(*(pixels(reference.masked_conv2d(a, b, full, None, *conv.geometry)) for a, b in operands))
    close_periodic("forward of large tiles", pixels(y), want, dtype, 216)

    # The same operands for the other gradient: a weight with as many input channels.
    dy, w, chosen = x, w.transpose(0, 1), o.flags(3, RIGHT_PERIOD)
    dyd, wd, flags = o.there(dy, w, chosen)
    bits = packed(flags[:, channels])[images]
    dx = ops.gathered_conv2d_input_grad(dyd[images], wd[:, channels], bits, [5, 5], *geometry)
    kept = pixels(chosen[..., None, None].expand(3, RIGHT_PERIOD, 5, 5))
    operands = (dy.double(), w.double()), (dy.double().abs(), w.double().abs())
    shape = (3, RIGHT_PERIOD, 5, 5)
    want = Sums(*(pixels(conv2d_input(shape, b, a, *geometry)) for a, b in operands)).times(kept)
    close_periodic("input_grad of large tiles", pixels(dx), want, dtype, 216)

    dy, x, chosen = (
        o.normal(3, 61, 6, 6, dtype=dtype),
        o.normal(3, RIGHT_PERIOD, 6, 6, dtype=dtype),
        o.flags(3, RIGHT_PERIOD),
    )
    flags = chosen[..., None, None].expand(x.shape)
    dyd, xd, there = o.there(dy, x.masked_fill(~flags, torch.nan), chosen)
    down = repeating(61, side, o.device)
    bits = packed(there[:, channels])
    dw = ops.gathered_conv2d_weight_grad(dyd[:, down], xd[:, channels], bits, [1, 1], [1, 1], [0, 0], [1, 1])
    operands = ((x * flags).double(), dy.double()), ((x * flags).double().abs(), dy.double().abs())
    want = Sums(*(conv2d_weight(a, (61, RIGHT_PERIOD, 1, 1), b).flatten(1) for a, b in operands))
    close_periodic("weight_grad of large tiles", dw.flatten(1), want, dtype, 108)
