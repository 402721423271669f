"""`channel_select`: the active channels of each sample, packed to the front."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops, reference
from .._checks import describe
from ..backends import choose, extend
from . import _backends, _channels, _check

extend("cpu", {"channel_select": ops.channel_select})
extend("cuda", {"channel_select": ops.channel_select})
extend("triton", {"channel_select": lambda *operands: _backends.triton.channel_select(*operands)})
extend("reference", {"channel_select": reference.channel_select})


def channel_select(input: Tensor, mask: Tensor, max_channels: int | None = None) -> tuple[Tensor, Tensor]:
    """The channels of each sample that its row of `mask` asks for, in rising order, zeros behind them.

    With `max_channels` the shapes do not depend on values, so that the host need not wait for them; active channels
    past that many are left out. Without it, the result has as many as the fullest sample. The gradient of a channel
    that is not in `values` is 0.

    Args:
        input: `[N, C, ...]`, any dtype, any strides, any trailing dimensions or none.
        mask: bool `[N, C]`.
        max_channels: channels of the result, K; None for the largest count.

    Returns:
        values `[N, K, ...]`, the input's dtype, channels_last where the input is, else contiguous; and counts `[N]`,
        int64: how many channels of each sample are in `values`, at most K.

    Raises:
        TypeError: a mask that is not bool, a `max_channels` that is no int.
        ValueError: shapes or devices that do not fit, a negative `max_channels`.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _channels.check_activation(input)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor [N, C], got {describe(mask)}")
    if mask.shape != input.shape[:2]:
        raise ValueError(
            f"mask must have shape {list(input.shape[:2])} for input {describe(input)}, got {describe(mask)}"
        )
    _check.same_device("mask", mask, "input", input)
    counts = mask.sum(1)
    if max_channels is None:
        max_channels = int(counts.max()) if counts.numel() > 0 else 0
    else:
        _channels.check_size(max_channels, "max_channels")
        counts = counts.clamp(max=max_channels)
    values = choose("channel_select", input.device).ops["channel_select"](input, mask, max_channels)
    return values, counts
