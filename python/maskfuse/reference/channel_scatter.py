"""The definition of `channel_scatter`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._memory_format import memory_format_of


def channel_scatter(
    input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None = None, batch_size: int | None = None
) -> Tensor:
    """A tensor of zeros `[batch_size, num_channels, ...]` with `input` added at `[batch[:, None], channels]`.

    Args:
        input: `[B, K, ...]`.
        channels: integers `[K]`, or `[B, K]`: row j belongs to input sample j.
        num_channels: channels of the result.
        batch: integers `[B]` or None.
        batch_size: samples of the result; B without `batch`.
    """
    samples = input.shape[0] if batch_size is None else batch_size
    rows = torch.arange(samples, device=input.device) if batch is None else batch.long() % max(1, samples)
    columns = channels.long() % max(1, num_channels)
    target = (rows[:, None] * num_channels + columns).reshape(-1)
    flat = input.new_zeros((samples * num_channels, *input.shape[2:]))
    added = flat.index_add(0, target, input.reshape(len(target), *input.shape[2:]))
    result = added.reshape(samples, num_channels, *input.shape[2:])
    return result.contiguous(memory_format=memory_format_of(input))
