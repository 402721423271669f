"""What the kernels' tiles have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from .._launch import INTERPRETED

# Triton's interpreter multiplies bfloat16 as if it were integers, and rounds to it towards zero.
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def operand(tile):
    """A tile as `tl.dot` takes it."""
    if _INTERPRETED and tile.dtype == tl.bfloat16:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def rounded(tile, DTYPE: tl.constexpr):
    """A tile of sums as the result has them, to nearest even."""
    if _INTERPRETED and DTYPE == tl.bfloat16 and tile.dtype == tl.float32:
        bits = tile.to(tl.int32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where(tile != tile, (bits >> 16) | 0x40, upper)  # NaN stays NaN
        return upper.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return tile.to(DTYPE)


@triton.jit
def bits_along_rows(words):
    """Words [R, W] of a mask as flags [R, 32 W]: those of a word lie one behind the other in its row."""
    place = tl.arange(0, 32)
    flags = (words[:, :, None] >> place[None, None, :]) & 1
    return tl.reshape(flags, (words.shape[0], words.shape[1] * 32)) != 0


@triton.jit
def bits_along_columns(words):
    """Words [W, C] of a mask as flags [32 W, C]."""
    place = tl.arange(0, 32)
    flags = (words[:, None, :] >> place[None, :, None]) & 1
    return tl.reshape(flags, (words.shape[0] * 32, words.shape[1])) != 0


@triton.jit
def tile_of(index, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The place of tile `index` among those of a matrix: in groups of eight rows of tiles, which share what they read
    while it is in the second-level cache."""
    across = tl.cdiv(columns, BLOCK_C)
    together = 8
    group = index // (together * across)
    first = group * together
    height = tl.minimum(tl.cdiv(rows, BLOCK_R) - first, together)
    inside = index % (together * across)
    return first + inside % height, inside // height


@triton.jit
def sigmoid(t):
    """The gate of scores, in their own precision: float32 or float64."""
    return 1 / (1 + tl.exp(-t))


@triton.jit
def far(index, FAR: tl.constexpr):
    """An index that is to be multiplied by a stride: in 64 bits where an operand reaches over 2^31 elements. Elsewhere
    in 32, since addresses take most of the registers."""
    return index.to(tl.int64) if FAR else index
