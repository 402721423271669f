"""Packing of masks into bits and back, and the lists of their active blocks."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from ..ops.mask import words
from ._launch import launch, op, plain_op, wrap_triton
from ._operands import check_bits
from .kernels.mask import pack_kernel, unpack_kernel
from .kernels.product import LIST_BLOCK, LIST_GROUP

_ROWS, _WORDS = 16, 4  # of a program's tile


@op
def mask_pack(dense: Tensor) -> Tensor:
    """Bool `[rows, columns]` to int32 `[rows, words]`, as `Mask.bits` has them."""
    if dense.dtype != torch.bool:
        raise RuntimeError(f"mask_pack: dense must be bool, got {dense.dtype}")
    if dense.dim() != 2:
        raise RuntimeError(f"mask_pack: dense must have shape [rows, columns], got {list(dense.shape)}")
    rows, columns = dense.shape
    bits = dense.new_empty((rows, words(columns)), dtype=torch.int32)
    if rows > 0 and columns > 0:
        flags = dense.contiguous().view(torch.int8)
        grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(words(columns), _WORDS),)
        launch(wrap_triton(pack_kernel), grid, flags, bits, rows, columns, words(columns), R=_ROWS, W=_WORDS)
    return bits


@op
def mask_unpack(bits: Tensor, columns: int) -> Tensor:
    """int32 `[rows, words]` to bool `[rows, columns]`."""
    bits = check_bits("mask_unpack", bits, bits.shape[0], columns, bits)
    rows = bits.shape[0]
    flags = bits.new_empty((rows, columns), dtype=torch.int8)
    if rows > 0 and columns > 0:
        grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(words(columns), _WORDS),)
        launch(wrap_triton(unpack_kernel), grid, bits, flags, rows, columns, words(columns), R=_ROWS, W=_WORDS)
    return flags.view(torch.bool)


def by_taps(bits: Tensor, columns: int, taps: int) -> Tensor:
    """Bits `[rows, channels x taps]` in the order of taps: `[rows, taps x words(channels)]`, a tap's side by side."""
    rows, channels = bits.shape[0], columns // taps
    dense = torch.ops.maskfuse_triton.mask_unpack(bits, columns).reshape(rows, channels, taps)
    apart = dense.transpose(1, 2).reshape(rows * taps, channels)
    return torch.ops.maskfuse_triton.mask_pack(apart).reshape(rows, taps * words(channels))


def listed(active: Tensor) -> Tensor:
    """Flags `[groups, blocks]` as lists `[groups, 1 + blocks]`: how many are set, which, and zeros."""
    groups, blocks = active.shape
    count = active.sum(1, keepdim=True)
    # Each that is set has a place behind the count; the others share one behind the list, which is cut off.
    place = torch.where(active, active.long().cumsum(1) - 1, blocks)
    block = torch.arange(blocks, device=active.device).expand(groups, blocks)
    entries = block.new_zeros((groups, blocks + 1)).scatter(1, place, block)
    return torch.cat([count, entries[:, :blocks]], 1).to(torch.int32)


@plain_op
def mask_lists(bits: Tensor, columns: int, taps: int) -> list[Tensor]:
    """Lists of rows and of channels, and for a convolution the bits by taps (csrc/cuda/mask_lists.h); by plain
    PyTorch: they are made once a mask."""
    if bits.dim() != 2 or taps < 1 or columns % taps:
        raise RuntimeError(
            f"mask_lists: bits must have shape [rows, words] and taps divide columns, got {list(bits.shape)},"
            f" {columns} columns and {taps} taps"
        )
    bits = check_bits("mask_lists", bits, bits.shape[0], columns, bits)
    rows, channels = bits.shape[0], columns // taps
    ordered = by_taps(bits, columns, taps) if taps > 1 else bits
    any_bit = ordered.reshape(rows, taps, words(channels)) != 0

    def blocks(flags: Tensor, side_of_rows: int, words_of_columns: int) -> Tensor:
        """Whether any is set in each block: [blocks of rows, taps, blocks of channels]."""
        padded = F.pad(flags, (0, -flags.shape[2] % words_of_columns, 0, 0, 0, -flags.shape[0] % side_of_rows))
        parts = padded.unflatten(2, (-1, words_of_columns)).unflatten(0, (-1, side_of_rows))
        return parts.any(4).any(1)

    of_rows = blocks(any_bit, LIST_GROUP, LIST_BLOCK // 32).flatten(1)
    of_channels = blocks(any_bit, LIST_BLOCK, LIST_GROUP // 32).permute(2, 1, 0).flatten(1)
    lists = [listed(of_rows), listed(of_channels)]
    return lists if taps == 1 else [*lists, ordered]


def try_launch(device: torch.device) -> None:
    """Compiles and launches the smallest kernel, whatever modes the caller is in; raises what that raises."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        flags = torch.ones((1, 32), dtype=torch.int8, device=device)
        bits = torch.empty((1, 1), dtype=torch.int32, device=device)
        launch(pack_kernel, (1,), flags, bits, 1, 32, 1, R=_ROWS, W=_WORDS)
