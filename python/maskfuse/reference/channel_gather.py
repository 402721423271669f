"""The definition of `channel_gather`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._memory_format import memory_format_of


def channel_gather(input: Tensor, channels: Tensor, batch: Tensor | None = None) -> Tensor:
    """`input[batch][:, channels]`, or with an index a sample `input[batch[:, None], channels]`.

    Args:
        input: `[N, C, ...]`.
        channels: integers `[K]`, or `[B, K]`: row j belongs to output sample j.
        batch: integers `[B]` or None.
    """
    rows = torch.arange(input.shape[0], device=input.device) if batch is None else batch.long()
    return input[rows[:, None], channels.long()].contiguous(memory_format=memory_format_of(input))
