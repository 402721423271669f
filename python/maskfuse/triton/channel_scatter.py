"""`channel_scatter`: channels, and samples, back in their places; what an index names twice is added."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._activation import Activation, activation, by_parts, numbers_of, result_like, tile_of_pixels
from ._launch import launch, op, opaque, wrap_triton
from .channel_gather import check_index
from .kernels.channel_scatter import channel_scatter_kernel


def _fake_inverse(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return index.new_empty(index.shape, dtype=torch.int64), index.new_empty(
        (index.shape[0], size + 1), dtype=torch.int64
    )


@opaque("(Tensor index, SymInt size) -> (Tensor, Tensor)", _fake_inverse)
def channel_inverse(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of each row of an index `[R, K]`: its positions ordered by entry, and where those of entry i begin `[R, size +
    1]`; positions of one entry keep their order, and entries that leave the axis come behind all others.

    By torch's own sort, opaque to compilers: inductor of torch 2.13 compiles a stable sort wrongly.
    """
    entry = torch.where(index < 0, index + size, index)
    entry = torch.where((entry >= 0) & (entry < size), entry, size).contiguous()
    found = torch.sort(entry, dim=1, stable=True)
    wanted = torch.arange(size + 1, dtype=entry.dtype, device=index.device).expand(index.shape[0], -1).contiguous()
    return found.indices, torch.searchsorted(found.values, wanted)


def _scatter(
    of: Activation, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int, flags: bool
) -> Tensor:
    y = result_like(of, batch_size, num_channels)
    if y.tensor.numel() == 0:
        return y.tensor
    if of.tensor.numel() == 0:
        return y.tensor.zero_()
    order, starts = channel_inverse(channels if channels.dim() == 2 else channels[None], num_channels)
    batch_order, batch_starts = (order, starts) if batch is None else channel_inverse(batch[None], batch_size)
    a_sample = channels.dim() == 2
    block_c, block_p = tile_of_pixels(y)
    launch(
        wrap_triton(channel_scatter_kernel),
        (batch_size * triton.cdiv(num_channels, block_c) * triton.cdiv(of.pixels, block_p),),
        numbers_of(of.tensor),
        order,
        starts,
        batch_order,
        batch_starts,
        numbers_of(y.tensor),
        num_channels,
        of.pixels,
        *of.strides,
        *y.strides,
        order.stride(0) if a_sample else 0,
        starts.stride(0) if a_sample else 0,
        BATCH=batch is not None,
        FLAGS=flags,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return y.tensor


@op
def channel_scatter(
    input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int, unique: bool
) -> Tensor:
    """Zeros with `input` at `[batch][:, channels]`; whatever `unique` says, what is named twice is added."""
    name = "channel_scatter"
    check_index(name, channels, input.shape[0], batch, input)
    if input.dim() < 2 or input.shape[1] != channels.shape[-1]:
        raise RuntimeError(f"{name}: input {list(input.shape)} does not fit channels {list(channels.shape)}")
    samples = batch_size if batch is None else batch.shape[0]
    if input.shape[0] != samples:
        raise RuntimeError(f"{name}: input must have {samples} samples, got {list(input.shape)}")
    where = (channels, num_channels, batch, batch_size)
    if input.dtype == torch.bool:
        return _scatter(activation(name, input.view(torch.int8)), *where, flags=True).view(torch.bool)
    if input.is_complex():
        return by_parts(lambda part: _scatter(activation(name, part), *where, flags=False), input)
    return _scatter(activation(name, input), *where, flags=False)
