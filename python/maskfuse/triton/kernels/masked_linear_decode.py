"""Packed weights: the active values row after row, which calls of few rows read beside the bits and nothing else.

A block is 64 columns of a row. Where its values begin is kept in 16 bits beside 64 of the mask; which value an active
weight has is then the number of active ones in front of it in its block, found by a scan over the flags while the
block is in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._launch import tuned
from .._planner import DECODE
from .product import part_of, row_words
from .tile import bits_along_rows, far, operand, rounded


@triton.jit
def decode_kernel(
    x, bits, values, row_starts, block_starts, bias, y, m, n, k, active, x_m, x_k, bits_ld, blocks,
    BIAS: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, ARCH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y: contiguous [m, n] of one tile of rows, or with PARTS > 1 [PARTS, m, n] in the precision of sums."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    part = tl.program_id(1)
    n0 = tl.program_id(0) * BLOCK_N
    rn, rm = n0 + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    row_start = tl.load(row_starts + rn, mask=rn < n, other=0)
    begin, end = part_of(blocks, part, PARTS)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC)
    for block in range(begin, end):
        k0 = block * BLOCK_K
        start = tl.load(block_starts + far(rn, FAR) * blocks + block, mask=rn < n, other=0).to(tl.int32)
        if block_starts.dtype.element_ty == tl.int16:
            start = start & 0xFFFF
        flags = bits_along_rows(row_words(bits, n0, k0, n, k, bits_ld, FAR, BLOCK_N, BLOCK_K))
        ones = flags.to(tl.int32)
        begins = row_start + start
        if not FAR:
            begins = begins.to(tl.int32)
        at = begins[:, None] + (tl.cumsum(ones, 1) - ones)
        # `active` bounds what bits of another mask than the packed one could ask for.
        weight = tl.load(values + at, mask=flags & (at >= 0) & (at < active), other=0.0)
        rk = k0 + tl.arange(0, BLOCK_K)
        here = (rk[:, None] < k) & (rm[None, :] < m)
        rows = tl.load(x + far(rm[None, :], FAR) * x_m + far(rk[:, None], FAR) * x_k, mask=here, other=0.0)
        acc = tl.dot(operand(weight), operand(rows), acc, input_precision="ieee", out_dtype=ACC)
    if BIAS:
        acc += tl.load(bias + rn, mask=rn < n, other=0.0).to(ACC)[:, None]
    to = far(part * m + rm[None, :], FAR) * n + rn[:, None]
    tl.store(y + to, rounded(acc, y.dtype.element_ty), mask=(rm[None, :] < m) & (rn[:, None] < n))


decode_few = tuned(decode_kernel, DECODE, ("BLOCK_M", "BLOCK_N", "BLOCK_K"), ["n", "k"])
