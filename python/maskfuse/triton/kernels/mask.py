"""Packing of masks into bits and back."""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import bits_along_rows


@triton.jit
def tile_among(words, W: tl.constexpr):
    """A program's place among the tiles of rows of words, all along the one index that has no small limit."""
    across = tl.cdiv(words, W)
    return tl.program_id(0) // across, tl.program_id(0) % across


@triton.jit
def pack_kernel(dense, bits, rows, columns, ld, R: tl.constexpr, W: tl.constexpr):
    """Bytes [rows, columns] to words [rows, ld]."""
    tile_row, tile_word = tile_among(ld, W)
    row = tile_row * R + tl.arange(0, R)
    word = tile_word * W + tl.arange(0, W)
    place = tl.arange(0, 32)
    column = word[:, None] * 32 + place[None, :]
    at = row[:, None, None].to(tl.int64) * columns + column[None, :, :]
    here = (row[:, None, None] < rows) & (column[None, :, :] < columns)
    flags = (tl.load(dense + at, mask=here, other=0) != 0).to(tl.int32)
    packed = tl.sum(flags << place[None, None, :], 2)
    tl.store(
        bits + row[:, None].to(tl.int64) * ld + word[None, :],
        packed,
        mask=(row[:, None] < rows) & (word[None, :] < ld),
    )


@triton.jit
def unpack_kernel(bits, dense, rows, columns, ld, R: tl.constexpr, W: tl.constexpr):
    """Words [rows, ld] to bytes [rows, columns]."""
    tile_row, tile_word = tile_among(ld, W)
    row = tile_row * R + tl.arange(0, R)
    word = tile_word * W + tl.arange(0, W)
    packed = tl.load(
        bits + row[:, None].to(tl.int64) * ld + word[None, :],
        mask=(row[:, None] < rows) & (word[None, :] < ld),
        other=0,
    )
    column = tile_word * W * 32 + tl.arange(0, W * 32)
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    here = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(dense + at, bits_along_rows(packed).to(tl.int8), mask=here)
