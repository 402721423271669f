"""Channels, and samples, picked by an index."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(index, offsets, here, size):
    """Entries of an index, counted from the end where negative, and which of them lie in 0..size - 1."""
    entry = tl.load(index + offsets, mask=here, other=0)
    entry = tl.where(entry < 0, entry + size, entry)
    return entry.to(tl.int64), here & (entry >= 0) & (entry < size)


@triton.jit
def tile_in(program, channels, pixels, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """A program's sample, and its tile's channels and pixels."""
    tiles_c, tiles_p = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    tile = program % (tiles_c * tiles_p)
    c = tile // tiles_p * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    return program // (tiles_c * tiles_p), c, p


@triton.jit
def channel_gather_kernel(
    x, channels, batch, y, from_samples, from_channels, count, pixels, x_n, x_c, x_p, y_n, y_c, y_p, index_row,
    BATCH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y[s, c, p] = x[batch[s], channels[s or all, c], p], 0 where an index leaves its axis: nothing is read there."""
    sample, c, p = tile_in(tl.program_id(0), count, pixels, BLOCK_C, BLOCK_P)
    sample = sample.to(tl.int64)
    channel, there = place_of(channels, sample * index_row + c, c < count, from_channels)
    source = sample
    if BATCH:
        source, sample_there = place_of(batch, sample, True, from_samples)
        there = there & sample_there
    at = source * x_n + channel[:, None] * x_c + p[None, :].to(tl.int64) * x_p
    value = tl.load(x + at, mask=there[:, None] & (p[None, :] < pixels), other=0)
    to = sample * y_n + c[:, None].to(tl.int64) * y_c + p[None, :].to(tl.int64) * y_p
    tl.store(y + to, value, mask=(c[:, None] < count) & (p[None, :] < pixels))
