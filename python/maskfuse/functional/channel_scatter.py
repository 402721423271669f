"""`channel_scatter`: channels, or channels of samples, back in their places."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops, reference
from .._checks import describe
from ..backends import choose, extend
from . import _backends, _channels


def _check_values(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> None:
    if _channels.values_are_known(channels):
        for index, size, name in ((channels, num_channels, "channels"), (batch, batch_size, "batch")):
            if index is not None:
                _channels.check_range(index, size, name, input)
                _channels.check_unique(index, size, name, input)


def _kernels(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> Tensor:
    if torch.compiler.is_compiling():
        return ops.channel_scatter(input, channels, num_channels, batch, batch_size, True)
    try:
        return ops.channel_scatter(input, channels, num_channels, batch, batch_size, True)
    except RuntimeError:
        _check_values(input, channels, num_channels, batch, batch_size)
        raise


def _reference(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> Tensor:
    _check_values(input, channels, num_channels, batch, batch_size)
    return reference.channel_scatter(input, channels, num_channels, batch, batch_size)


def _triton(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> Tensor:
    _check_values(input, channels, num_channels, batch, batch_size)
    return _backends.triton.channel_scatter(input, channels, num_channels, batch, batch_size, True)


extend("cpu", {"channel_scatter": _kernels})
extend("cuda", {"channel_scatter": _kernels})
extend("triton", {"channel_scatter": _triton})
extend("reference", {"channel_scatter": _reference})


def _check_length(index: Tensor, length: int, name: str, axis: str, input: Tensor) -> None:
    if index.shape[-1] != length:
        raise ValueError(
            f"{name} must name as many {axis} as input has, {length}, got {index.shape[-1]}; input is {describe(input)}"
        )


def channel_scatter(
    input: Tensor,
    channels: slice | range | Tensor,
    num_channels: int,
    batch: slice | range | Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Puts channels back where `channel_gather` with the same `channels` and `batch` takes them from; the rest is 0.

    Each element of the result is written once: the index is inverted, and no zeros are written first.

    Args:
        input: `[B, K, ...]`, any dtype, any strides, any trailing dimensions or none.
        channels: slice or range; bool `[num_channels]`; integers `[K]`; or integers `[B, K]`, whose row j belongs to
            sample j of `input`. No channel of a sample may be named twice.
        num_channels: channels of the result.
        batch: None for all samples; slice or range; bool `[batch_size]`; or integers `[B]`, none of them twice.
        batch_size: samples of the result. Needed where `batch` is a slice, a range or integers.

    Returns:
        `[batch_size, num_channels, ...]`, the input's dtype; channels_last where the input is, else contiguous.

    Raises:
        TypeError: selectors of other types or dtypes, sizes that are no int.
        ValueError: shapes or devices that do not fit, an index that is named twice, a missing `batch_size`.
        IndexError: an index or range outside of its axis. Traced code raises RuntimeError when it runs; on devices
            other than the CPU, values of an index are not looked at: what is named twice is added.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _channels.check_activation(input)
    _channels.check_size(num_channels, "num_channels")
    index = _channels.index_of(channels, num_channels, "channels", input, most_dims=2)
    _channels.check_rows(index, input.shape[0])
    _check_length(index, input.shape[1], "channels", "channels", input)
    rows = None
    if batch is None:
        batch_size = input.shape[0] if batch_size is None else batch_size
    elif batch_size is None:
        if not isinstance(batch, Tensor) or batch.dtype != torch.bool:
            raise ValueError(f"batch_size is needed with batch as {describe(batch)}")
        batch_size = batch.numel()
    _channels.check_size(batch_size, "batch_size")
    if batch is not None:
        rows = _channels.index_of(batch, batch_size, "batch", input)
        _check_length(rows, input.shape[0], "batch", "samples", input)
    elif batch_size != input.shape[0]:
        raise ValueError(
            f"batch_size without batch must be {input.shape[0]} for input {describe(input)}, got {batch_size}"
        )
    run = choose("channel_scatter", input.device).ops["channel_scatter"]
    return run(input, index, num_channels, rows, batch_size)
