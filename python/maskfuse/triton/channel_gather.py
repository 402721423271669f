"""`channel_gather`: channels, and samples, picked in one pass."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._activation import Activation, activation, by_parts, result_like, tile_of_pixels, words_of
from ._launch import launch, op, wrap_triton
from .kernels.channel_gather import channel_gather_kernel


def _gather(of: Activation, channels: Tensor, batch: Tensor | None = None) -> Tensor:
    """The kernel on an activation; an entry of the index that leaves its axis gives zeros.

    Args:
        of: what is picked from.
        channels: integers `[K]`, or `[B, K]`: row j belongs to sample j of the result.
        batch: integers `[B]`, or None for all samples.
    """
    samples = of.samples if batch is None else batch.shape[0]
    count = channels.shape[-1]
    y = result_like(of, samples, count)
    if y.tensor.numel() == 0:
        return y.tensor
    block_c, block_p = tile_of_pixels(of)
    channels = channels.contiguous()
    batch = None if batch is None else batch.contiguous()
    launch(
        wrap_triton(channel_gather_kernel),
        (samples * triton.cdiv(count, block_c) * triton.cdiv(of.pixels, block_p),),
        words_of(of.tensor),
        channels,
        channels if batch is None else batch,
        words_of(y.tensor),
        of.samples,
        of.channels,
        count,
        of.pixels,
        *of.strides,
        *y.strides,
        count if channels.dim() == 2 else 0,
        BATCH=batch is not None,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return y.tensor


def gather(op: str, t: Tensor, channels: Tensor, batch: Tensor | None = None) -> Tensor:
    """`_gather` of a tensor of any dtype."""
    if t.dtype == torch.complex128:  # of 16 bytes, for which there is no integer
        return by_parts(lambda part: _gather(activation(op, part), channels, batch), t)
    return _gather(activation(op, t), channels, batch)


def check_index(op: str, channels: Tensor, samples: int, batch: Tensor | None, like: Tensor) -> None:
    """Raises unless the index is one, of one row or as many as there are selected samples."""
    for name, index in (("channels", channels), ("batch", batch)):
        if index is not None and index.dtype not in (torch.int32, torch.int64):
            raise RuntimeError(f"{op}: {name} must be int32 or int64, got {index.dtype}")
        if index is not None and index.device != like.device:
            raise RuntimeError(f"{op}: {name} must be on {like.device}, got {index.device}")
    if channels.dim() not in (1, 2) or (channels.dim() == 2 and channels.shape[0] != samples):
        raise RuntimeError(
            f"{op}: channels must have shape [K] or [{samples}, K] for {samples} samples, got {list(channels.shape)}"
        )
    if batch is not None and batch.dim() != 1:
        raise RuntimeError(f"{op}: batch must have shape [B], got {list(batch.shape)}")


@op
def channel_gather(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> Tensor:
    """`input[batch][:, channels]`, or with an index a sample `input[batch[:, None], channels]`."""
    name = "channel_gather"
    if input.dim() < 2 or input.shape[1] != num_channels or input.shape[0] != batch_size:
        raise RuntimeError(
            f"{name}: input must have {batch_size} samples and {num_channels} channels, got {list(input.shape)}"
        )
    check_index(name, channels, input.shape[0] if batch is None else batch.shape[0], batch, input)
    return gather(name, input, channels, batch)
