"""The memory format that results take over from an activation."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format_of(t: Tensor) -> torch.memory_format:
    """channels_last for activations `[N, C, H, W]` or `[N, C, D, H, W]` laid out so, else contiguous.

    torch's own rule for `suggest_memory_format`: the strides rise from the channels over the pixels to the samples.
    csrc/torch/channel_layout.cpp has the same one.
    """
    if t.dim() not in (4, 5) or t.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for d in (1, *range(t.dim() - 1, 1, -1), 0):
        stride, size = t.stride(d), t.size(d)
        if size == 0 or stride < least or (d == 0 and least == t.stride(1)):
            return torch.contiguous_format
        least = stride * size
    return torch.channels_last if t.dim() == 4 else torch.channels_last_3d
