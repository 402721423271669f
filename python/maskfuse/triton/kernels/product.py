"""Products of a matrix with a masked weight, and sums over rows under a mask: the kernels of every linear layer here.

    product        y[m, n] = sum over k of x[m, k] w[n, k]         forward; of the weight transposed, input_grad
    outer_product  y[n, k] = sum over m of g[m, n] x[m, k]         weight_grad, masked as it is stored

The weight is the left operand of the tensor core's product, so that what a mask, a factor or a gate makes of it stays
in registers (`wgmma` takes it from there) and is never stored; the result is computed transposed for that.

A weight is read as [n, k] whichever way it lies. Its mask is one of

    NOTHING
    ROW_BITS     words of bits along k, a row for each n
    COLUMN_BITS  words of bits along n, a row for each k: of a weight that is read transposed
    FACTOR       real numbers
    GATE         scores, whose sigmoid is the factor

`lists` (csrc/cuda/mask_lists.h) name the blocks of 64 of the depth that hold active weights, for each 128 of n; others
are not visited. A depth in parts is summed part by part, in the same order in every call.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._launch import tuned
from .._planner import FEW, FLOAT_FEW, FLOAT_SMALL, LARGE, SMALL, SQUARE
from .tile import bits_along_columns, bits_along_rows, far, operand, rounded, sigmoid, tile_of

LIST_GROUP, LIST_BLOCK = 128, 64  # of csrc/cuda/mask_lists.h; kernels, which take no globals, have them as numbers
NOTHING, ROW_BITS, COLUMN_BITS, FACTOR, GATE = range(5)

_NOTHING, _ROW_BITS, _COLUMN_BITS = tl.constexpr(NOTHING), tl.constexpr(ROW_BITS), tl.constexpr(COLUMN_BITS)
_FACTOR, _GATE = tl.constexpr(FACTOR), tl.constexpr(GATE)


@triton.jit
def row_words(bits, first_row, first_column, rows, columns, ld, FAR: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """The words of bits of R rows and C columns, zero where there are none."""
    row = first_row + tl.arange(0, R)
    word = first_column // 32 + tl.arange(0, C // 32)
    here = (row[:, None] < rows) & (word[None, :] * 32 < columns)
    return tl.load(bits + far(row[:, None], FAR) * ld + word[None, :], mask=here, other=0)


@triton.jit
def column_words(bits, first_column, first_row, columns, rows, ld, FAR: tl.constexpr, C: tl.constexpr, R: tl.constexpr):
    """The same, transposed: [C / 32, R]."""
    word = first_column // 32 + tl.arange(0, C // 32)
    row = first_row + tl.arange(0, R)
    here = (word[:, None] * 32 < columns) & (row[None, :] < rows)
    return tl.load(bits + far(row[None, :], FAR) * ld + word[:, None], mask=here, other=0)


@triton.jit
def masked_weight(
    w, mask, n0, k0, n, k, w_n, w_k, mask_n, mask_k, KIND: tl.constexpr, FAR: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weight's tile [BLOCK_N, BLOCK_K] at n0, k0, as the product takes it."""
    rn, rk = n0 + tl.arange(0, BLOCK_N), k0 + tl.arange(0, BLOCK_K)
    here = (rn[:, None] < n) & (rk[None, :] < k)
    tile = tl.load(w + far(rn[:, None], FAR) * w_n + far(rk[None, :], FAR) * w_k, mask=here, other=0.0)
    if KIND == _NOTHING:
        pass
    elif KIND == _ROW_BITS:
        tile = tl.where(bits_along_rows(row_words(mask, n0, k0, n, k, mask_n, FAR, BLOCK_N, BLOCK_K)), tile, 0.0)
    elif KIND == _COLUMN_BITS:
        words = column_words(mask, n0, k0, n, k, mask_k, FAR, BLOCK_N, BLOCK_K)
        tile = tl.where(bits_along_columns(words), tile, 0.0)
    else:
        at = far(rn[:, None], FAR) * mask_n + far(rk[None, :], FAR) * mask_k
        factor = tl.load(mask + at, mask=here, other=0.0).to(ACC)
        if KIND == _GATE:
            factor = sigmoid(factor)
        tile = rounded(tile.to(ACC) * factor, w.dtype.element_ty)
    return operand(tile)


@triton.jit
def part_of(count, part, PARTS: tl.constexpr):
    """Where a part of `count` steps begins and ends."""
    return (count * part) // PARTS, (count * (part + 1)) // PARTS


@triton.jit
def product_kernel(
    x, w, mask, bias, lists, y, m, n, k, x_m, x_k, w_n, w_k, mask_n, mask_k, list_ld,
    KIND: tl.constexpr, LISTS: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr,
    ARCH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y: contiguous [m, n], or with PARTS > 1 [PARTS, m, n] in the precision of sums, for `add_parts`."""
    ACC: tl.constexpr = tl.float64 if w.dtype.element_ty == tl.float64 else tl.float32
    STEPS: tl.constexpr = 64 // BLOCK_K
    part = tl.program_id(1)
    tile_n, tile_m = tile_of(tl.program_id(0), n, m, BLOCK_N, BLOCK_M)
    n0, m0 = tile_n * BLOCK_N, tile_m * BLOCK_M
    rm = m0 + tl.arange(0, BLOCK_M)
    if LISTS:
        blocks = lists + (n0 // 128).to(tl.int64) * list_ld + 1
        count = tl.load(blocks - 1)
    else:
        count = tl.cdiv(k, 64)
    begin, end = part_of(count, part, PARTS)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC)
    for step in range(begin * STEPS, end * STEPS):
        if LISTS:
            block = tl.load(blocks + step // STEPS)
        else:
            block = step // STEPS
        k0 = block * 64 + step % STEPS * BLOCK_K
        weight = masked_weight(w, mask, n0, k0, n, k, w_n, w_k, mask_n, mask_k, KIND, FAR, ACC, BLOCK_N, BLOCK_K)
        rk = k0 + tl.arange(0, BLOCK_K)
        here = (rk[:, None] < k) & (rm[None, :] < m)
        rows = tl.load(x + far(rm[None, :], FAR) * x_m + far(rk[:, None], FAR) * x_k, mask=here, other=0.0)
        acc = tl.dot(weight, operand(rows), acc, input_precision="ieee", out_dtype=ACC)
    rn = n0 + tl.arange(0, BLOCK_N)
    if BIAS:
        acc += tl.load(bias + rn, mask=rn < n, other=0.0).to(ACC)[:, None]
    at = (far(part * m, FAR) + rm[None, :]) * n + rn[:, None]
    tl.store(y + at, rounded(acc, y.dtype.element_ty), mask=(rm[None, :] < m) & (rn[:, None] < n))


@triton.jit
def add_parts_kernel(
    parts, bias, y, numel, n, BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y [numel / n, n] = the sum of parts [PARTS, numel / n, n] in rising order, and a bias [n]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < numel
    total = tl.load(parts + at, mask=here, other=0.0)
    for part in range(1, PARTS):
        total += tl.load(parts + part * numel + at, mask=here, other=0.0)
    if BIAS:
        total += tl.load(bias + at % n, mask=here, other=0.0).to(total.dtype)
    tl.store(y + at, rounded(total, y.dtype.element_ty), mask=here)


@triton.jit
def store_masked(
    sums, weight, mask, y, d_mask, n0, k0, n, k, weight_n, weight_k, mask_n, mask_k, y_n, y_k,
    KIND: tl.constexpr, FAR: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the kernels of weight gradients end with: sums [BLOCK_N, BLOCK_K] under the mask into y [n, k]; of a gate
    its own gradient into d_mask too."""
    rn, rk = n0 + tl.arange(0, BLOCK_N), k0 + tl.arange(0, BLOCK_K)
    here = (rn[:, None] < n) & (rk[None, :] < k)
    to = far(rn[:, None], FAR) * y_n + far(rk[None, :], FAR) * y_k
    if KIND == _NOTHING:
        pass
    elif KIND == _ROW_BITS:
        sums = tl.where(bits_along_rows(row_words(mask, n0, k0, n, k, mask_n, FAR, BLOCK_N, BLOCK_K)), sums, 0.0)
    else:
        at = far(rn[:, None], FAR) * mask_n + far(rk[None, :], FAR) * mask_k
        factor = tl.load(mask + at, mask=here, other=0.0).to(ACC)
        if KIND == _GATE:
            at = far(rn[:, None], FAR) * weight_n + far(rk[None, :], FAR) * weight_k
            value = tl.load(weight + at, mask=here, other=0.0).to(ACC)
            slope = value * sigmoid(factor) * sigmoid(-factor)  # 1 - gate would cancel
            tl.store(d_mask + to, rounded(sums * slope, d_mask.dtype.element_ty), mask=here)
            factor = sigmoid(factor)
        sums *= factor
    tl.store(y + to, rounded(sums, y.dtype.element_ty), mask=here)


@triton.jit
def outer_product_kernel(
    g, x, weight, mask, y, d_mask, m, n, k, g_m, g_n, x_m, x_k, weight_n, weight_k, mask_n, mask_k,
    KIND: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, ARCH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """y: contiguous [n, k], or with PARTS > 1 [PARTS, n, k], not masked yet, for `add_masked_parts`.

    A tile that the mask hides altogether reads neither g nor x.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    part = tl.program_id(1)
    tile_n, tile_k = tile_of(tl.program_id(0), n, k, BLOCK_N, BLOCK_K)
    n0, k0 = tile_n * BLOCK_N, tile_k * BLOCK_K
    rn, rk = n0 + tl.arange(0, BLOCK_N), k0 + tl.arange(0, BLOCK_K)
    begin, end = part_of(tl.cdiv(m, BLOCK_M), part, PARTS)
    if KIND == _ROW_BITS:
        words = row_words(mask, n0, k0, n, k, mask_n, FAR, BLOCK_N, BLOCK_K)
        end = tl.where(tl.max(tl.max((words != 0).to(tl.int32), 1), 0) != 0, end, begin)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=ACC)
    for step in range(begin, end):
        rm = step * BLOCK_M + tl.arange(0, BLOCK_M)
        left = tl.load(
            g + far(rn[:, None], FAR) * g_n + far(rm[None, :], FAR) * g_m,
            mask=(rn[:, None] < n) & (rm[None, :] < m),
            other=0.0,
        )
        right = tl.load(
            x + far(rm[:, None], FAR) * x_m + far(rk[None, :], FAR) * x_k,
            mask=(rm[:, None] < m) & (rk[None, :] < k),
            other=0.0,
        )
        acc = tl.dot(operand(left), operand(right), acc, input_precision="ieee", out_dtype=ACC)
    if PARTS > 1:
        at = (far(part * n, FAR) + rn[:, None]) * k + rk[None, :]
        tl.store(y + at, acc, mask=(rn[:, None] < n) & (rk[None, :] < k))
    else:
        store_masked(
            acc, weight, mask, y, d_mask, n0, k0, n, k, weight_n, weight_k, mask_n, mask_k, k, 1,
            KIND, FAR, ACC, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def add_masked_parts_kernel(
    parts, weight, mask, y, d_mask, n, k, weight_n, weight_k, mask_n, mask_k, mask_tap, y_n, y_k, y_tap,
    KIND: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y [taps, n, k] = the sum of parts [PARTS, taps, n, k] in rising order, under the mask."""
    ACC: tl.constexpr = parts.dtype.element_ty
    n0, k0, tap = tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_K, tl.program_id(2).to(tl.int64)
    taps = tl.num_programs(2).to(tl.int64)
    rn, rk = n0 + tl.arange(0, BLOCK_N), k0 + tl.arange(0, BLOCK_K)
    here = (rn[:, None] < n) & (rk[None, :] < k)
    at = (tap * n + rn[:, None]) * k + rk[None, :]
    total = tl.load(parts + at, mask=here, other=0.0)
    for part in range(1, PARTS):
        total += tl.load(parts + part * taps * n * k + at, mask=here, other=0.0)
    store_masked(
        total, weight, mask + tap * mask_tap, y + tap * y_tap, d_mask, n0, k0, n, k,
        weight_n, weight_k, mask_n, mask_k, y_n, y_k, KIND, FAR, ACC, BLOCK_N, BLOCK_K,
    )  # fmt: skip


_TILE, _OUTER_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K"), ("BLOCK_N", "BLOCK_K", "BLOCK_M")
product_large = tuned(product_kernel, LARGE, _TILE, ["n", "k", "KIND", "LISTS"])
product_small = tuned(product_kernel, SMALL, _TILE, ["n", "k", "KIND", "LISTS"])
product_few = tuned(product_kernel, FEW, _TILE, ["n", "k", "KIND", "LISTS"])
product_float_small = tuned(product_kernel, FLOAT_SMALL, _TILE, ["n", "k", "KIND", "LISTS"])
product_float_few = tuned(product_kernel, FLOAT_FEW, _TILE, ["n", "k", "KIND", "LISTS"])
outer_product_large = tuned(outer_product_kernel, SQUARE, _OUTER_TILE, ["n", "k", "KIND"])
outer_product_small = tuned(outer_product_kernel, SMALL, _OUTER_TILE, ["n", "k", "KIND"])
outer_product_float_small = tuned(outer_product_kernel, FLOAT_SMALL, _OUTER_TILE, ["n", "k", "KIND"])
