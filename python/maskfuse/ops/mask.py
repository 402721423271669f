"""Shapes of the mask ops, for tracing."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library as _library


def words(columns: int) -> int:
    """32-bit words that a row of `columns` bits takes."""
    return (columns + 31) // 32


def unpacked(bits: Tensor, columns: int) -> Tensor:
    """What `mask_unpack` gives, by torch's own ops."""
    flags = torch.tensor([*(1 << place for place in range(31)), -(1 << 31)], dtype=bits.dtype, device=bits.device)
    return (bits.unsqueeze(-1) & flags != 0).flatten(1)[:, :columns]


@torch.library.register_fake("maskfuse::mask_pack")
def _(dense: Tensor) -> Tensor:
    return dense.new_empty((dense.shape[0], words(dense.shape[1])), dtype=torch.int32)


@torch.library.register_fake("maskfuse::mask_unpack")
def _(bits: Tensor, columns: int) -> Tensor:
    return bits.new_empty((bits.shape[0], columns), dtype=torch.bool)


@torch.library.register_fake("maskfuse::mask_structure")
def _(bits: Tensor, columns: int, inner: int) -> Tensor:
    return bits.new_empty((6,), dtype=torch.int64)


@torch.library.register_fake("maskfuse::mask_transpose")
def _(bits: Tensor, columns: int, taps: int) -> Tensor:
    return bits.new_empty((columns // taps, words(bits.shape[0] * taps)))


@torch.library.register_fake("maskfuse::mask_lists")
def _(bits: Tensor, columns: int, taps: int) -> list[Tensor]:
    rows, channels = bits.shape[0], columns // taps
    lists = [
        bits.new_empty((-(-rows // 128), 1 + taps * -(-channels // 64))),
        bits.new_empty((-(-channels // 128), 1 + taps * -(-rows // 64))),
    ]
    return lists if taps == 1 else [*lists, bits.new_empty((rows, taps * words(channels)))]


@torch.library.register_fake("maskfuse::mask_plan")
def _(bits: Tensor, columns: int, taps: int) -> Tensor:
    # Its size depends on the bits: plans are made when a mask is set, not in traced code.
    return bits.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)
