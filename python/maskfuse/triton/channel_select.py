"""`channel_select`: the active channels of each sample, packed to the front, and its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from ._launch import op
from .channel_gather import gather


def _check(op: str, t: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise RuntimeError(f"{op}: mask must be bool, got {mask.dtype}")
    if t.dim() < 2 or mask.dim() != 2 or mask.shape[0] != t.shape[0]:
        raise RuntimeError(f"{op}: mask must have a row a sample, got {list(mask.shape)} for {list(t.shape)}")


def _places(mask: Tensor, most: int) -> Tensor:
    """int64 `[N, C]`: which of the first `most` active channels of its sample each channel is, else `most`."""
    place = mask.long().cumsum(1) - 1
    return torch.where(mask & (place < most), place, most)


@op
def channel_select(input: Tensor, mask: Tensor, max_channels: int) -> Tensor:
    """`[N, max_channels, ...]`: the channels of each sample that its row of mask asks for, then zeros."""
    name = "channel_select"
    _check(name, input, mask)
    samples, channels = mask.shape
    if channels != input.shape[1]:
        raise RuntimeError(f"{name}: mask must have shape {list(input.shape[:2])}, got {list(mask.shape)}")
    # A place behind the last takes those that are not selected; an index of `channels` selects zeros.
    columns = torch.arange(channels, device=mask.device).expand(samples, channels)
    nothing = columns.new_full((samples, max_channels + 1), channels)
    chosen = nothing.scatter(1, _places(mask, max_channels), columns)
    return gather(name, input, chosen[:, :max_channels])


@op
def channel_select_input_grad(grad: Tensor, mask: Tensor, max_channels: int) -> Tensor:
    """`[N, C, ...]`: the selected channels back in their places, zeros in the others."""
    name = "channel_select_input_grad"
    _check(name, grad, mask)
    if grad.shape[1] != max_channels:
        raise RuntimeError(f"{name}: grad must have {max_channels} channels, got {list(grad.shape)}")
    return gather(name, grad, _places(mask, max_channels))
