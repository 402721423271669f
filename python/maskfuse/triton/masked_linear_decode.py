"""Packed weights: the active values row after row, which calls of few rows read beside the bits and nothing else.

A block is 64 columns of a row. Where its values begin is kept in 16 bits beside 64 of the mask; which value an active
weight has is then the number of active ones in front of it in its block, found by a scan over the flags while the
block is in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from ._device import capability
from ._launch import launch, plain_op, tuned
from ._linear import add_parts, sums_of
from ._operands import check_bits, check_shape
from ._plan import Packed
from ._planner import DECODE, cut_product
from ._product import LIST_BLOCK, part_of, row_words
from ._tile import bits_along_rows, operand, rounded


@triton.jit
def decode_kernel(
    x, bits, values, row_starts, block_starts, bias, y, m, n, k, active, x_m, x_k, bits_ld, blocks,
    BIAS: tl.constexpr, PARTS: tl.constexpr, ARCH: tl.constexpr,
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
        start = tl.load(block_starts + rn.to(tl.int64) * blocks + block, mask=rn < n, other=0).to(tl.int32)
        if block_starts.dtype.element_ty == tl.int16:
            start = start & 0xFFFF
        flags = bits_along_rows(row_words(bits, n0, k0, n, k, bits_ld, BLOCK_N, BLOCK_K))
        ones = flags.to(tl.int32)
        at = (row_start + start)[:, None] + (tl.cumsum(ones, 1) - ones)
        # `active` bounds what bits of another mask than the packed one could ask for.
        weight = tl.load(values + at, mask=flags & (at < active), other=0.0)
        rk = k0 + tl.arange(0, BLOCK_K)
        here = (rk[:, None] < k) & (rm[None, :] < m)
        rows = tl.load(x + rm[None, :].to(tl.int64) * x_m + rk[:, None].to(tl.int64) * x_k, mask=here, other=0.0)
        acc = tl.dot(operand(weight), operand(rows), acc, input_precision="ieee", out_dtype=ACC)
    if BIAS:
        acc += tl.load(bias + rn, mask=rn < n, other=0.0).to(ACC)[:, None]
    to = (part * m + rm[None, :]).to(tl.int64) * n + rn[:, None]
    tl.store(y + to, rounded(acc, y.dtype.element_ty), mask=(rm[None, :] < m) & (rn[:, None] < n))


decode_few = tuned(decode_kernel, DECODE, ("BLOCK_M", "BLOCK_N", "BLOCK_K"), ["n", "k"])


@plain_op
def masked_linear_pack(weight: Tensor, bits: Tensor, plan: list[Tensor]) -> list[Tensor]:
    """The tensors of `Packed`. Waits for the device, which counts the active weights."""
    name = "masked_linear_pack"
    if weight.dim() != 2:
        raise RuntimeError(f"{name}: weight must have shape [out, in], got {list(weight.shape)}")
    out, inp = weight.shape
    bits = check_bits(name, bits, out, inp, weight)
    dense = torch.ops.maskfuse_triton.mask_unpack(bits, inp)
    blocks = (inp + LIST_BLOCK - 1) // LIST_BLOCK
    padded = torch.nn.functional.pad(dense, (0, blocks * LIST_BLOCK - inp))
    counts = padded.reshape(out, blocks, LIST_BLOCK).sum(2)
    of_row = counts.sum(1)
    block_starts = counts.cumsum(1) - counts
    narrow = torch.int16 if inp <= 1 << 16 else torch.int32
    return list(
        Packed(
            weight[dense],
            of_row.cumsum(0) - of_row,
            block_starts.to(narrow),  # wraps: without a sign it is what it was
            weight.new_empty((0, out, inp)),
        )
    )


def decode(x: Tensor, bits: Tensor, packed: Packed, n: int, bias: Tensor | None) -> Tensor:
    """x `[m, k]` of at most 16 rows times a packed weight, transposed: `[m, n]`."""
    m, k = x.shape
    y = x.new_empty((m, n))
    if m == 0 or n == 0:
        return y
    parts = cut_product(m, n, k, x.dtype, x.device).parts
    to = y if parts == 1 else x.new_empty((parts, m, n), dtype=sums_of(x.dtype))
    bias = None if bias is None else bias.contiguous()
    fused = bias if parts == 1 else None
    launch(
        wrap_triton(decode_few),
        lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), parts),
        x,
        bits,
        packed.values,
        packed.row_starts,
        packed.block_starts,
        to if fused is None else fused,
        to,
        m,
        n,
        k,
        packed.values.numel(),
        *x.stride(),
        bits.stride(0),
        packed.block_starts.shape[1],
        BIAS=fused is not None,
        PARTS=parts,
        ARCH=capability(x.device),
    )
    return y if parts == 1 else add_parts(to, bias, y)
