"""The pictures of "How it works". Masks in them are real ones, so bits and lists are what the package makes of them."""

from __future__ import annotations

import torch
from maskfuse import Mask
from svg import ACTIVE, CELL, INK, OTHER, Picture


def _some(rows: int, columns: int, density: float, seed: int = 3) -> Mask:
    return Mask.random((rows, columns), density, generator=torch.Generator().manual_seed(seed))


def _fills(bits: torch.Tensor, colour: str = ACTIVE) -> list[str]:
    return [colour if bit else "" for bit in bits.tolist()]


def mask_bits() -> Picture:
    """Rows of a mask of 3 by 40 weights, and the two words of 32 bits that each of them takes."""
    mask, picture = _some(3, 40, 0.3), Picture(760, 130)
    size = 10
    picture.word(10, 18, "mask.dense(), a cell a weight")
    picture.word(455, 18, "mask.bits, least significant bit first")
    for i, (row, words) in enumerate(zip(mask.dense(), mask.bits, strict=True)):
        y = 30 + 26 * i
        picture.row(10, y, _fills(row), w=size)
        picture.arrow(416, y + 8, 446, y + 8)
        for j, word in enumerate(words.tolist()):
            picture.cell(455 + 145 * j, y, 138, CELL + 2, label=f"0x{word & 0xFFFFFFFF:08x}")
    picture.word(10, 125, "columns 0 ... 31")
    picture.word(334, 125, "32 ... 39")
    picture.word(738, 125, "zero past the last column", "end")
    picture.frame(10, 28, 320, 74)
    return picture


def plan() -> Picture:
    """A tile of a mask and its index: rows in order of their number of active columns, and their columns."""
    mask, picture = _some(6, 14, 0.3, 5).dense(), Picture(760, 190)
    picture.word(10, 18, "a tile: rows of a panel, columns of a chunk")
    for i, row in enumerate(mask):
        picture.row(28, 30 + CELL * i, _fills(row))
        picture.word(22, 43 + CELL * i, str(i), "end", 11)
    lists = sorted(
        ((row.nonzero()[:, 0].tolist(), i) for i, row in enumerate(mask) if row.any()), key=lambda e: len(e[0])
    )
    picture.arrow(270, 80, 320, 80)
    picture.word(340, 18, "its entries: one byte a row, one byte a column")
    for j, (columns, i) in enumerate(lists):
        y = 30 + (CELL + 5) * j
        picture.cell(340, y, 28, CELL, OTHER, str(i))
        picture.row(378, y, [ACTIVE] * len(columns), [str(column) for column in columns], 24)
    picture.word(340, 30 + (CELL + 5) * len(lists) + 16, "rows[ ]", size=12)
    picture.word(
        400, 30 + (CELL + 5) * len(lists) + 16, "columns[ ]; a call copies the weights in the same order", size=12
    )
    picture.word(10, 150, "Entries of one length are a run:", size=12)
    picture.word(10, 166, "a loop's length rarely changes.", size=12)
    picture.word(10, 182, "A row without active weights has no entry.", size=12)
    return picture


def accumulate() -> Picture:
    """Active weights of one row times lines of the batch: the sums of sixteen samples grow together."""
    picture = Picture(760, 200)
    active = [1, 4, 5]
    picture.word(10, 18, "activations in lanes: [column][lane]")
    for c in range(7):
        chosen = c in active
        picture.row(60, 30 + 20 * c, [ACTIVE if chosen else ""] * 16)
        picture.word(52, 42 + 20 * c, f"x[:, {c}]", "end", 11)
    picture.word(330, 18, "row o of the weight")
    for j, c in enumerate(active):
        y = 30 + 20 * c
        picture.cell(345, y, 60, CELL, OTHER, f"w[o, {c}]")
        picture.arrow(340, y + 8, 320, y + 8)
        picture.arrow(410, y + 8, 470, 92 + 5 * j)
    picture.word(480, 72, "sums in registers")
    picture.row(480, 84, [INK] * 16)
    picture.word(480, 122, "y[:, o] of sixteen samples += w x line,", size=12)
    picture.word(480, 139, "once for each active weight", size=12)
    picture.word(60, 188, "a lane is a sample of the batch (float32, AVX-512)", size=12)
    return picture


def strip() -> Picture:
    """A strip of output pixels in lanes, and the copies of the input, one for each column of a 3 x 3 kernel."""
    picture = Picture(760, 190)
    picture.word(10, 18, "image row y")
    picture.row(10, 28, [""] * 12, [str(x) for x in range(12)], 22)
    picture.arrow(280, 36, 330, 36)
    picture.word(340, 18, "the same row in the lanes of the output's pixels 0 ... 11")
    for dx in range(3):
        y = 28 + 24 * dx
        seen = [x + dx - 1 for x in range(12)]
        picture.row(
            400, y, [ACTIVE if 0 <= x < 12 else "" for x in seen], [str(x) if 0 <= x < 12 else "0" for x in seen], 22
        )
        picture.word(392, y + 12, f"dx = {dx}", "end", 12)
    picture.word(300, 122, "A tap w[o, c, dy, dx] is one line of the copy dx, dy rows further down:", size=12)
    picture.word(300, 139, "sums of twelve pixels += weight x line, as in a linear layer.", size=12)
    picture.word(300, 156, "A strip is up to four rows of such lanes; its input fits the first-level cache.", size=12)
    return picture


def packed() -> Picture:
    """Sixteen mask bits spread packed weights to the columns where they belong."""
    picture = Picture(760, 165)
    bits = _some(1, 16, 0.35, 9).dense()[0]
    values = [f"w{i}" for i in range(int(bits.sum()))]
    places = bits.nonzero()[:, 0].tolist()
    picture.word(10, 40, "packed")
    picture.row(110, 28, [OTHER] * len(values), values, 30)
    picture.word(10, 72, "mask bits")
    picture.row(110, 60, _fills(bits), [str(int(bit)) for bit in bits], 30)
    picture.word(10, 122, "in a register")
    spread = ["0"] * 16
    for value, place in zip(values, places, strict=True):
        spread[place] = value
    picture.row(110, 110, [OTHER if bit else "" for bit in bits], spread, 30)
    for place in places:
        picture.arrow(110 + 30 * place + 15, 78, 110 + 30 * place + 15, 106)
    picture.word(
        110, 150, "times sixteen activations: only active weights and their bits are read from memory", size=12
    )
    return picture


def blocks() -> Picture:
    """Blocks of 64 columns of a weight: those without an active weight are not in the list of the rows' tile."""
    picture = Picture(760, 170)
    kept = [[0, 3, 4], [1], [2, 3, 7]]
    picture.word(10, 18, "the weight in blocks of 128 x 64")
    picture.word(420, 18, "a list for each 128 rows: count, block, block ...")
    for i, blocks in enumerate(kept):
        y = 30 + 36 * i
        for b in range(8):
            picture.cell(10 + 40 * b, y, 40, 30, ACTIVE if b in blocks else "", str(b))
        picture.arrow(340, y + 15, 410, y + 15)
        listed = [len(blocks), *blocks]
        picture.row(
            420,
            y + 7,
            [OTHER, *[ACTIVE] * len(blocks), *[""] * (8 - len(blocks))],
            [str(n) for n in listed] + ["0"] * (9 - len(listed)),
            30,
        )
    picture.word(
        10,
        160,
        "A thread block computes 128 columns of the result and walks its list: empty blocks are not even read.",
        size=12,
    )
    return picture


ALL = {draw.__name__: draw for draw in (mask_bits, plan, accumulate, strip, packed, blocks)}
