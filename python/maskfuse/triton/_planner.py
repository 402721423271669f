"""Which tiles a product gets, and in how many parts its depth is summed: by sizes, dtype and device alone.

A family of tiles is chosen here; which of a family's configurations is fastest is timed (`_launch.tuned`). All of one
kernel and dtype cut the depth alike, so that timing never changes a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FEW_ROWS = 16  # rows of the smallest tile; packed weights are read for no more
_MOST_PARTS = 8
_LEAST_BLOCKS = 4  # blocks of the depth that make a part


class Cut(NamedTuple):
    """How a product is cut.

    Attributes:
        family: `few` (tiles of 16 rows), `small` (64 x 64) or `large` (128 x 128 and such); which of its configurations
            runs is timed.
        parts: of the depth.
        half: on tensor cores, which take half types; float32 and float64 are multiplied one by one.
    """

    family: str
    parts: int
    half: bool

    def __str__(self) -> str:
        """As `explain` prints it."""
        kernel = "product" if self.half else "element_product"
        return f"{kernel} {self.family}" + (f" in {self.parts} parts" if self.parts > 1 else "")


def _tiles(rows: int, columns: int, side: int, across: int) -> int:
    return -(-rows // side) * -(-columns // across)


def cut_product(m: int, n: int, k: int, dtype: torch.dtype, count: int, copies: int = 1) -> Cut:
    """For `copies` products [m, k] x [k, n] whose depth is visited in blocks of 64, on `count` multiprocessors."""
    if m <= FEW_ROWS:
        family, tiles = "few", _tiles(n, m, 64, 16)
    elif dtype.itemsize == 2 and copies * _tiles(m, n, 128, 128) >= count:
        family, tiles = "large", _tiles(m, n, 128, 128)
    else:
        family, tiles = "small", _tiles(m, n, 64, 64)
    return Cut(family, _parts(copies * tiles, -(-k // 64), count), dtype.itemsize == 2)


def cut_outer(m: int, n: int, k: int, dtype: torch.dtype, count: int, copies: int = 1) -> Cut:
    """For `copies` sums over m rows of products [n] x [k]."""
    large = dtype.itemsize == 2 and copies * _tiles(n, k, 128, 128) >= count
    tiles = _tiles(n, k, 128, 128) if large else _tiles(n, k, 64, 64)
    return Cut("large" if large else "small", _parts(copies * tiles, -(-m // 64), count), dtype.itemsize == 2)


def cut_pixels(pixels: int, n: int, k: int, taps: int, groups: int, dtype: torch.dtype, count: int) -> Cut:
    """For a convolution's result of n channels in a group, of k on the other side."""
    return cut_product(pixels, n, taps * -(-k // 64) * 64, dtype, count, groups)


def cut_weight(pixels: int, n: int, k: int, taps: int, groups: int, dtype: torch.dtype, count: int) -> Cut:
    """For the gradient of a convolution's weight, n x k in a group."""
    return cut_outer(pixels, n, k, dtype, count, groups * taps)


def _parts(tiles: int, blocks: int, count: int) -> int:
    if tiles == 0 or 2 * tiles > count:
        return 1
    return max(1, min(count // tiles, blocks // _LEAST_BLOCKS, _MOST_PARTS))


# Which configurations a family has, on an architecture: (rows, columns, depth) of tiles, warps, stages. All of a family
# have one depth. Columns, of the weight's side, divide 128, which lists of blocks are made for. The stages fit in the
# shared memory that a block may have: 227 KiB on sm90, 163 on sm80, 64 on AMD. On a device with less (99 KiB on sm86
# and sm89) those that do not fit are left out.
Tile = tuple[int, int, int]
Configs = dict[str, list[tuple[Tile, int, int]]]

LARGE: Configs = {
    "sm90": [((256, 128, 64), 8, 3), ((128, 128, 64), 8, 4), ((128, 128, 64), 8, 3)],
    "sm80": [((128, 128, 64), 8, 3), ((128, 128, 64), 8, 2), ((64, 128, 64), 4, 3)],
    "amd": [((128, 128, 64), 8, 2), ((128, 128, 64), 4, 2)],
}
# Without 256 rows: sums over rows, which mask two results at their end, and convolutions, whose lists may be for each
# 128 pixels.
SQUARE: Configs = {**LARGE, "sm90": [((128, 128, 64), 8, 4), ((128, 128, 64), 8, 3), ((128, 64, 64), 4, 4)]}
SMALL: Configs = {
    "sm90": [((64, 64, 64), 4, 4), ((128, 64, 64), 4, 4), ((64, 64, 64), 4, 3)],
    "sm80": [((64, 64, 64), 4, 4), ((64, 64, 64), 4, 3), ((128, 64, 64), 4, 3)],
    "amd": [((64, 64, 64), 4, 2), ((128, 64, 64), 4, 2)],
}
FEW: Configs = {
    "sm90": [((16, 64, 64), 4, 5), ((16, 64, 64), 4, 3), ((16, 128, 64), 4, 4)],
    "sm80": [((16, 64, 64), 4, 5), ((16, 64, 64), 4, 3), ((16, 128, 64), 4, 4)],
    "amd": [((16, 64, 64), 4, 2), ((16, 128, 64), 4, 2)],
}
# float32 and float64, which tensor cores do not multiply (float64 on some they do).
FLOAT_SMALL: Configs = {
    "sm90": [((64, 64, 32), 4, 2), ((64, 64, 32), 8, 2), ((64, 64, 32), 8, 3)],
    "sm80": [((64, 64, 32), 4, 2), ((64, 64, 32), 8, 2), ((64, 64, 32), 8, 3)],
    "amd": [((64, 64, 32), 4, 2), ((64, 64, 32), 8, 2)],
}
FLOAT_FEW: Configs = {
    "sm90": [((16, 64, 32), 4, 3), ((16, 128, 32), 4, 3)],
    "sm80": [((16, 64, 32), 4, 3), ((16, 128, 32), 4, 2)],
    "amd": [((16, 64, 32), 4, 2), ((16, 128, 32), 4, 2)],
}
# A packed weight's, for at most 16 rows; the depth is a block's.
DECODE: Configs = {
    "sm90": [((16, 64, 64), 4, 4), ((16, 64, 64), 8, 3), ((16, 128, 64), 8, 3)],
    "sm80": [((16, 64, 64), 4, 4), ((16, 64, 64), 8, 3), ((16, 128, 64), 8, 3)],
    "amd": [((16, 64, 64), 4, 2), ((16, 128, 64), 8, 2)],
}
