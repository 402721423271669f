"""One bit a weight: rows of 32-bit words, and what packs and unpacks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..ops.mask import unpacked, words


def rows_columns(shape: Sequence[int], name: str) -> tuple[int, int]:
    """Rows of bits, and bits a row, of a mask of this shape; `name` is what an error calls it."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"{name} must be a sequence of sizes, got {shape!r}")
    if len(shape) == 0:
        raise ValueError(f"{name} must have at least one dimension")
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} must not be negative, got {list(shape)}")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def valid_bits(columns: int, device: torch.device | str) -> Tensor:
    """A row in which every column is active, int32 `[ceil(columns / 32)]`."""
    row = torch.full((words(columns),), -1, dtype=torch.int32, device="cpu")
    if columns % 32:
        row[-1] = (1 << columns % 32) - 1
    return row.to(device)


def bit_ops(device: torch.device) -> Any:
    """What packs and unpacks bits on a device: the compiled ops, or on a GPU where those cannot run or failed their
    self-test the Triton ones; of backends asked for, the first of the two. None where the host has to: the reference
    has no bits of its own."""
    if device.type != "cuda":
        return torch.ops.maskfuse
    for name in backends.requested() or ("cuda", "triton"):
        if name in ("cuda", "triton") and backends.trusted(name, "mask", device):
            return torch.ops.maskfuse if name == "cuda" else torch.ops.maskfuse_triton
    return None


def packed_bits(dense: Tensor) -> Tensor:
    """The bits of a bool tensor `[rows, columns]`, as `Mask.bits` has them, on its device."""
    ops = bit_ops(dense.device)
    if ops is None:
        return torch.ops.maskfuse.mask_pack(dense.cpu()).to(dense.device)
    return ops.mask_pack(dense)


def unpacked_bits(bits: Tensor, columns: int) -> Tensor:
    """The bool tensor `[rows, columns]` that has these bits, on their device."""
    if backends.traced_plainly():
        return unpacked(bits, columns)
    ops = bit_ops(bits.device)
    if ops is None:
        return torch.ops.maskfuse.mask_unpack(bits.cpu(), columns).to(bits.device)
    return ops.mask_unpack(bits, columns)
