"""The definition of `channel_select`."""

from __future__ import annotations

from torch import Tensor

from .._memory_format import memory_format_of


def channel_select(input: Tensor, mask: Tensor, max_channels: int) -> Tensor:
    """The channels of each sample that are true in `mask`, in rising order, then zeros: `max_channels` in all.

    Args:
        input: `[N, C, ...]`.
        mask: bool `[N, C]`.
        max_channels: channels of the result; the active ones past it are left out.
    """
    samples, channels = mask.shape
    # The place of each channel in the result: active ones in order, one place past the end for the others.
    place = (mask.long().cumsum(1) - 1).masked_fill(~mask, max_channels).clamp(max=max_channels)
    place = place.reshape(samples, channels, *[1] * (input.dim() - 2)).expand_as(input)
    values = input.new_zeros((samples, max_channels + 1, *input.shape[2:])).scatter(1, place, input)
    return values[:, :max_channels].contiguous(memory_format=memory_format_of(input))
