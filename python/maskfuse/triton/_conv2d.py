"""Convolutions on the kernels of `kernels/conv2d.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..ops.masked_conv2d import image_like
from ._device import capability, multiprocessors
from ._geometry import Geometry, Ints
from ._launch import launch, wrap_triton
from ._linear import add_parts, sums_of
from ._operands import far
from ._planner import cut_pixels, cut_weight
from .kernels.conv2d import (
    conv2d_outer_product_float_small,
    conv2d_outer_product_large,
    conv2d_outer_product_small,
    conv2d_product_few,
    conv2d_product_float_few,
    conv2d_product_float_small,
    conv2d_product_large,
    conv2d_product_small,
)
from .kernels.product import COLUMN_BITS, NOTHING, ROW_BITS, add_masked_parts_kernel


class Under(NamedTuple):
    """What hides weights, or channels of images.

    Attributes:
        bits: of the weight by taps `[out, taps x words]`, or None: nothing is hidden.
        lists: blocks of the depth to visit: for each 128 channels of the result, or 128 pixels of it (`of_pixels`).
        chosen: bits `[images or 1, words(channels)]` of the channels that take part, or None: all do.
    """

    bits: Tensor | None = None
    lists: Tensor | None = None
    of_pixels: bool = False
    chosen: Tensor | None = None


def _product_kernel(family: str, half: bool) -> Any:
    if family == "large":
        return wrap_triton(conv2d_product_large)
    if family == "small":
        return wrap_triton(conv2d_product_small) if half else wrap_triton(conv2d_product_float_small)
    return wrap_triton(conv2d_product_few) if half else wrap_triton(conv2d_product_float_few)


def _outer_product_kernel(family: str, half: bool) -> Any:
    if family == "large":
        return wrap_triton(conv2d_outer_product_large)
    return wrap_triton(conv2d_outer_product_small) if half else wrap_triton(conv2d_outer_product_float_small)


def _innermost(t: Tensor, taps: int) -> Tensor:
    """With its channels side by side where a kernel of several taps reads it again and again."""
    return t.contiguous(memory_format=torch.channels_last) if taps > 1 else t


def _chosen_ld(chosen: Tensor | None) -> int:
    return 0 if chosen is None or chosen.shape[0] == 1 else chosen.stride(0)


def product(
    x: Tensor,
    weight: Tensor,
    under: Under,
    size: Ints,
    geometry: Geometry,
    bias: Tensor | None = None,
    backward: bool = False,
) -> Tensor:
    """The convolution of images x with a weight under a mask, or with `backward` its adjoint, as an image of `size`."""
    groups, (out, inp, *kernel) = geometry.groups, weight.shape
    taps = kernel[0] * kernel[1]
    n, k = (inp, out // groups) if backward else (out // groups, inp)
    y = image_like(x, (x.shape[0], groups * n, *size))
    if y.numel() == 0:
        return y
    m = x.shape[0] * size[0] * size[1]
    cut = cut_pixels(m, n, k, taps, groups, x.dtype, multiprocessors(x.device))
    to = y if cut.parts == 1 else x.new_empty((cut.parts, m, groups * n), dtype=sums_of(x.dtype))
    bias = None if bias is None else bias.contiguous()
    fused = bias if cut.parts == 1 else None
    x, weight = _innermost(x, taps), _innermost(weight, taps)
    bits, lists, chosen = under.bits, under.lists, under.chosen
    across = weight.stride()[1::-1] if backward else weight.stride()[:2]
    kind = NOTHING if bits is None else COLUMN_BITS if backward else ROW_BITS
    launch(
        _product_kernel(cut.family, x.dtype.itemsize == 2),
        lambda meta: (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]), cut.parts, groups),
        x,
        weight,
        weight if bits is None else bits,
        to if fused is None else fused,
        weight if chosen is None else chosen,
        weight if lists is None else lists,
        to,
        m,
        n,
        k,
        *size,
        *x.shape[2:],
        kernel[1],
        *x.stride(),
        out // groups * weight.stride(0),
        *across,
        *weight.stride()[2:],
        0 if bits is None else out // groups * bits.stride(0),
        0 if bits is None else bits.stride(0),
        0 if bits is None else bits.shape[1] // taps,
        _chosen_ld(chosen),
        *y.stride(),
        0 if lists is None else lists.stride(0),
        *geometry.flat(),
        taps,
        KIND=kind,
        BACKWARD=backward,
        CHANNELS=chosen is not None,
        LISTS=lists is not None,
        PIXEL_LISTS=under.of_pixels,
        BIAS=fused is not None,
        PARTS=cut.parts,
        FAR=far(x, weight, to),
        ARCH=capability(x.device),
    )
    if cut.parts == 1:
        return y
    pixels = add_parts(to, bias, y).reshape(x.shape[0], *size, groups * n).permute(0, 3, 1, 2)
    return pixels if pixels.stride() == y.stride() else y.copy_(pixels)


def outer_product(g: Tensor, x: Tensor, under: Under, kernel: Ints, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weight `[out, in / groups, *kernel]`, of that of its result and its images."""
    groups, taps = geometry.groups, kernel[0] * kernel[1]
    n, k = g.shape[1] // groups, x.shape[1] // groups
    y = g.new_empty((groups * n, k, *kernel))
    if y.numel() == 0:
        return y
    m = g.shape[0] * g.shape[2] * g.shape[3]
    cut = cut_weight(m, n, k, taps, groups, g.dtype, multiprocessors(g.device))
    to = y if cut.parts == 1 else g.new_empty((cut.parts, taps, groups * n, k), dtype=sums_of(g.dtype))
    g, x = _innermost(g, taps), _innermost(x, taps)
    bits, chosen = under.bits, under.chosen
    kind = NOTHING if bits is None else ROW_BITS
    words = 0 if bits is None else bits.shape[1] // taps
    launch(
        _outer_product_kernel(cut.family, g.dtype.itemsize == 2),
        lambda meta: (taps * triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(k, meta["BLOCK_K"]), cut.parts, groups),
        g,
        x,
        g if bits is None else bits,
        g if chosen is None else chosen,
        to,
        m,
        n,
        k,
        *g.shape[2:],
        *x.shape[2:],
        kernel[1],
        *g.stride(),
        *x.stride(),
        0 if bits is None else n * bits.stride(0),
        0 if bits is None else bits.stride(0),
        words,
        _chosen_ld(chosen),
        k * taps,
        taps,
        1,
        *geometry.flat(),
        taps,
        KIND=kind,
        CHANNELS=chosen is not None,
        PARTS=cut.parts,
        FAR=far(g, x, to),
        ARCH=capability(g.device),
    )
    if cut.parts > 1:
        launch(
            wrap_triton(add_masked_parts_kernel),
            (triton.cdiv(groups * n, 32), triton.cdiv(k, 64), taps),
            to,
            y,
            y if bits is None else bits,
            y,
            y,
            groups * n,
            k,
            0,
            0,
            0 if bits is None else bits.stride(0),
            1,
            words,
            k * taps,
            taps,
            1,
            KIND=kind,
            PARTS=cut.parts,
            FAR=far(to),
            BLOCK_N=32,
            BLOCK_K=64,
        )
    return y
