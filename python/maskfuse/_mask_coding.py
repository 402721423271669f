"""Two ways to write the bits of a mask into a file, of which the shorter one is taken.

- `bits`: int32, 32 weights a word in the order of the flat weight, least significant bit first; zero past the last.
- `gaps`: uint8, two numbers of 4 bits each, low half first. Each active weight is preceded by its gap, the number of
  masked weights since the last active one: `gap // 15` times 15, then `gap % 15`. One more active weight stands behind
  the last weight, so that the length is told; an odd number of halves ends with 15. At a density of a tenth it takes
  half a bit a weight, and it is the shorter one up to a density of about a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mask import Mask
from .ops.mask import words

CODINGS = {"bits": torch.int32, "gaps": torch.uint8}

_FULL = 15  # a gap that goes on


def encode(mask: Mask) -> tuple[str, Tensor]:
    """The coding taken for a mask on the CPU, and what to write: one-dimensional, of that coding's dtype."""
    flat = mask.dense().reshape(-1)
    gaps = _gaps(flat)
    halves = int((gaps // _FULL).sum()) + gaps.numel()
    if (halves + 1) // 2 >= 4 * words(flat.numel()):
        return "bits", torch.ops.maskfuse.mask_pack(flat[None]).reshape(-1)
    ends = (gaps // _FULL + 1).cumsum(0) - 1
    numbers = torch.full((halves + halves % 2,), _FULL, dtype=torch.uint8)
    numbers[ends] = (gaps % _FULL).to(torch.uint8)
    return "gaps", numbers[::2] | (numbers[1::2] << 4)


def _gaps(flat: Tensor) -> Tensor:
    active = flat.nonzero().squeeze(1)
    ends = torch.cat([active.new_tensor([-1]), active, active.new_tensor([flat.numel()])])
    return ends.diff() - 1


def decode(coding: str, data: Tensor, shape: Sequence[int]) -> Mask:
    """The mask that `encode` wrote.

    Raises:
        ValueError: the data is not of this coding, or not of a mask of this shape.
    """
    if coding not in CODINGS:
        raise ValueError(f"coding must be one of {', '.join(CODINGS)}, got {coding!r}")
    if data.dtype != CODINGS[coding] or data.dim() != 1:
        raise ValueError(f"{coding} must be {CODINGS[coding]} of one dimension, got {data.dtype} {list(data.shape)}")
    numel = math.prod(shape)
    flat = _from_bits(data, numel) if coding == "bits" else _from_gaps(data, numel)
    return Mask.from_dense(flat.reshape(tuple(shape)))


def _from_bits(data: Tensor, numel: int) -> Tensor:
    if data.numel() != words(numel):
        raise ValueError(f"bits of {numel} weights must have {words(numel)} words, got {data.numel()}")
    return Mask.from_bits(data[None], (1, numel)).dense()


def _from_gaps(data: Tensor, numel: int) -> Tensor:
    numbers = torch.stack([data & _FULL, data >> 4], 1).reshape(-1)
    if numbers.numel() and numbers[-1] == _FULL:
        numbers = numbers[:-1]
    if not numbers.numel() or numbers[-1] == _FULL:
        raise ValueError("gaps must end with an active weight")
    ends = (numbers != _FULL).nonzero().squeeze(1)
    active = numbers.long().cumsum(0)[ends] + torch.arange(ends.numel())
    if int(active[-1]) != numel:
        raise ValueError(f"gaps must be of {numel} weights, got {int(active[-1])}")
    flat = torch.zeros(numel, dtype=torch.bool)
    flat[active[:-1]] = True
    return flat
