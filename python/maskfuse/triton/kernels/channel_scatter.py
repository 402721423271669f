"""Channels, and samples, put back by the inverse of an index, and added where it names them twice."""

from __future__ import annotations

import triton
import triton.language as tl

from .channel_gather import tile_in
from .tile import rounded


@triton.jit
def channel_scatter_kernel(
    x, channel_order, channel_starts, batch_order, batch_starts, y, count, pixels, x_n, x_c, x_p, y_n, y_c, y_p,
    order_row, starts_row, BATCH: tl.constexpr, FLAGS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y[s, c, p] = the sum of x over the samples and channels that are put there, in the order of the index.

    The first addend is taken as it is: where it is the only one, its bits are the result's.
    """
    ACC: tl.constexpr = (
        tl.float32 if x.dtype.element_ty == tl.float16 or x.dtype.element_ty == tl.bfloat16 else x.dtype.element_ty
    )
    sample, c, p = tile_in(tl.program_id(0), count, pixels, BLOCK_C, BLOCK_P)
    sample = sample.to(tl.int64)
    first, last = sample, sample + 1
    if BATCH:
        first, last = tl.load(batch_starts + sample), tl.load(batch_starts + sample + 1)
    acc = tl.zeros((BLOCK_C, BLOCK_P), dtype=ACC)
    seen = tl.zeros((BLOCK_C,), dtype=tl.int32)
    for i in range(first, last):
        source = sample
        if BATCH:
            source = tl.load(batch_order + i)
        begin = tl.load(channel_starts + source * starts_row + c, mask=c < count, other=0)
        many = tl.load(channel_starts + source * starts_row + c + 1, mask=c < count, other=0) - begin
        for j in range(0, tl.max(many, 0).to(tl.int32)):
            channel = tl.load(channel_order + source * order_row + begin + j, mask=j < many, other=0)
            at = source * x_n + channel[:, None] * x_c + p[None, :].to(tl.int64) * x_p
            value = tl.load(x + at, mask=(j < many)[:, None] & (p[None, :] < pixels), other=0).to(ACC)
            total = tl.maximum(acc, value) if FLAGS else acc + value
            acc = tl.where((seen == 0)[:, None], value, tl.where((j < many)[:, None], total, acc))
            seen += (j < many).to(tl.int32)
    to = sample * y_n + c[:, None].to(tl.int64) * y_c + p[None, :].to(tl.int64) * y_p
    tl.store(y + to, rounded(acc, y.dtype.element_ty), mask=(c[:, None] < count) & (p[None, :] < pixels))
