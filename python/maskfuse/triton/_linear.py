"""Products and sums of matrices on the kernels of `kernels/product.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ._device import capability, multiprocessors
from ._launch import launch, wrap_triton
from ._operands import far
from ._planner import cut_outer, cut_product
from .kernels.product import (
    GATE,
    add_masked_parts_kernel,
    add_parts_kernel,
    outer_product_float_small,
    outer_product_large,
    outer_product_small,
    product_few,
    product_float_few,
    product_float_small,
    product_large,
    product_small,
)


def sums_of(dtype: torch.dtype) -> torch.dtype:
    """The precision in which products of a dtype are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_kernel(family: str, half: bool) -> Any:
    if family == "large":
        return wrap_triton(product_large)
    if family == "small":
        return wrap_triton(product_small) if half else wrap_triton(product_float_small)
    return wrap_triton(product_few) if half else wrap_triton(product_float_few)


def _outer_product_kernel(family: str, half: bool) -> Any:
    if family == "large":
        return wrap_triton(outer_product_large)
    return wrap_triton(outer_product_small) if half else wrap_triton(outer_product_float_small)


def add_parts(parts: Tensor, bias: Tensor | None, like: Tensor) -> Tensor:
    """The sum of parts `[P, ..., n]` in rising order, with a bias `[n]`, in the dtype of `like`."""
    result = torch.empty(parts.shape[1:], dtype=like.dtype, device=like.device)
    launch(
        wrap_triton(add_parts_kernel),
        (triton.cdiv(result.numel(), 1024),),
        parts,
        bias if bias is not None else parts,
        result,
        result.numel(),
        result.shape[-1],
        BIAS=bias is not None,
        PARTS=parts.shape[0],
        BLOCK=1024,
    )
    return result


def product(
    x: Tensor, weight: Tensor, kind: int, mask: Tensor, lists: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x `[m, k]` times a masked weight `[n, k]`, transposed: `[m, n]`.

    Args:
        x, weight: of any strides.
        kind: what the mask is: ROW_BITS and so on.
        mask: words of bits `[n, k / 32]`, or of columns `[n / 32, k]`, or a factor or scores `[n, k]` of any strides.
        lists: int32 `[n / 128, 1 + blocks]`: the blocks of the depth to visit; None for all.
        bias: `[n]` or None.
    """
    (m, k), n = x.shape, weight.shape[0]
    y = x.new_empty((m, n))
    if m == 0 or n == 0:
        return y
    cut = cut_product(m, n, k, x.dtype, multiprocessors(x.device))
    to = y if cut.parts == 1 else x.new_empty((cut.parts, m, n), dtype=sums_of(x.dtype))
    fused = bias if cut.parts == 1 else None
    bias = None if bias is None else bias.contiguous()
    launch(
        _product_kernel(cut.family, x.dtype.itemsize == 2),
        lambda meta: (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]), cut.parts),
        x,
        weight,
        mask,
        bias if fused is not None else to,
        mask if lists is None else lists,
        to,
        m,
        n,
        k,
        *x.stride(),
        *weight.stride(),
        mask.stride(0),
        mask.stride(1),
        0 if lists is None else lists.stride(0),
        KIND=kind,
        LISTS=lists is not None,
        BIAS=fused is not None,
        PARTS=cut.parts,
        FAR=far(x, weight, mask, to),
        ARCH=capability(x.device),
    )
    return y if cut.parts == 1 else add_parts(to, bias, y)


def outer_product(g: Tensor, x: Tensor, kind: int, mask: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """g `[m, n]`, transposed, times x `[m, k]`, under a mask: `[n, k]`; and of a gate, the gradient of its scores.

    Args:
        g, x: of any strides.
        kind: what the mask is; bits are those of rows.
        mask: words of bits, or a factor or scores `[n, k]` of any strides.
        weight: `[n, k]`, of a gate.
    """
    (m, n), k = g.shape, x.shape[1]
    y = x.new_empty((n, k))
    d_mask = x.new_empty((n, k)) if kind == GATE else y
    if n == 0 or k == 0:
        return y, d_mask
    cut = cut_outer(m, n, k, x.dtype, multiprocessors(x.device))
    to = y if cut.parts == 1 else x.new_empty((cut.parts, n, k), dtype=sums_of(x.dtype))
    weight = mask if weight is None else weight
    under = (*weight.stride(), *mask.stride())
    launch(
        _outer_product_kernel(cut.family, x.dtype.itemsize == 2),
        lambda meta: (triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(k, meta["BLOCK_K"]), cut.parts),
        g,
        x,
        weight,
        mask,
        to,
        d_mask,
        m,
        n,
        k,
        *g.stride(),
        *x.stride(),
        *under,
        KIND=kind,
        PARTS=cut.parts,
        FAR=far(g, x, weight, mask, to),
        ARCH=capability(x.device),
    )
    if cut.parts > 1:
        launch(
            wrap_triton(add_masked_parts_kernel),
            (triton.cdiv(n, 32), triton.cdiv(k, 64), 1),
            to,
            weight,
            mask,
            y,
            d_mask,
            n,
            k,
            *under,
            0,
            k,
            1,
            0,
            KIND=kind,
            PARTS=cut.parts,
            FAR=far(weight, mask, to),
            BLOCK_N=32,
            BLOCK_K=64,
        )
    return y, d_mask
