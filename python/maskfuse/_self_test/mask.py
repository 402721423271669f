"""Check of the kernels that pack masks and make what other kernels derive from the bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compare import Operands, equal, has_kernel, packed


def _lists(by_tap: Tensor, rows: int, channels: int) -> tuple[Tensor, Tensor]:
    """The lists of `csrc/cuda/mask_lists.h` of a bool tensor `[rows, taps, channels]`: for each 128 rows the number of
    blocks of 64 channels of a tap that hold an active weight, those blocks, and zeros; and for each 128 channels the
    same of blocks of 64 rows."""

    def whole(t: Tensor, height: int, width: int) -> Tensor:
        padded = F.pad(t, (0, -t.shape[2] % width, 0, 0, 0, -t.shape[0] % height))
        return padded.reshape(padded.shape[0] // height, height, t.shape[1], padded.shape[2] // width, width)

    def lists(any_active: Tensor) -> Tensor:
        found = torch.zeros((any_active.shape[0], 1 + any_active.shape[1]), dtype=torch.int32)
        for group, blocks in enumerate(any_active):
            active = blocks.nonzero().squeeze(1)
            found[group, 0] = len(active)
            found[group, 1 : 1 + len(active)] = active
        return found

    of_rows = whole(by_tap, 128, 64).any(4).any(1)
    of_channels = whole(by_tap, 64, 128).any(4).any(1).permute(2, 1, 0)
    return lists(of_rows.flatten(1)), lists(of_channels.flatten(1))


def mask(ops: Any, device: torch.device) -> None:
    """Bits, and lists of blocks or the transposed bits, each as plain PyTorch has them."""
    o = Operands(device)
    for shape in ((1, 1), (7, 33), (70, 100), (300, 40)):
        dense = o.flags(*shape)
        bits = packed(dense)
        equal("mask_pack", ops.mask_pack(dense.to(device)), bits)
        equal("mask_pack of columns", ops.mask_pack(dense.to(device).T), packed(dense.T))
        equal("mask_unpack", ops.mask_unpack(bits.to(device), shape[1]), dense)
        if has_kernel(ops, "mask_transpose", device):
            equal("mask_transpose", ops.mask_transpose(bits.to(device), shape[1], 1), packed(dense.T))
    if not has_kernel(ops, "mask_lists", device):
        return
    rows, channels = 300, 150
    for taps in (1, 4):
        active = torch.zeros(rows * channels * taps, dtype=torch.bool)
        active[o.order(active.numel())[:24]] = True  # so few that blocks are empty
        dense = active.reshape(rows, channels, taps)
        by_tap = dense.movedim(2, 1)
        bits = packed(dense.flatten(1)).to(device)
        found = ops.mask_lists(bits, channels * taps, taps)
        for name, got, want in zip(("rows", "channels"), found, _lists(by_tap, rows, channels), strict=False):
            equal(f"mask_lists of {name}", got, want)
        if taps > 1:
            equal("mask_lists' bits by taps", found[2], packed(by_tap.reshape(rows * taps, channels)).reshape(rows, -1))
