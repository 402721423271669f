"""`channel_gather`: channels, or channels of samples, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops, reference
from ..backends import choose, extend
from . import _backends, _channels


def _check_values(input: Tensor, channels: Tensor, batch: Tensor | None) -> None:
    if _channels.values_are_known(channels):
        _channels.check_range(channels, input.shape[1], "channels", input)
        if batch is not None:
            _channels.check_range(batch, input.shape[0], "batch", input)


def _kernels(input: Tensor, channels: Tensor, batch: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return ops.channel_gather(input, channels, input.shape[1], batch, input.shape[0])
    try:
        return ops.channel_gather(input, channels, input.shape[1], batch, input.shape[0])
    except RuntimeError:
        _check_values(input, channels, batch)  # says what the op found, as the exception that it is
        raise


def _reference(input: Tensor, channels: Tensor, batch: Tensor | None) -> Tensor:
    _check_values(input, channels, batch)
    return reference.channel_gather(input, channels, batch)


def _triton(input: Tensor, channels: Tensor, batch: Tensor | None) -> Tensor:
    _check_values(input, channels, batch)
    return _backends.triton.channel_gather(input, channels, input.shape[1], batch, input.shape[0])


extend("cpu", {"channel_gather": _kernels})
extend("cuda", {"channel_gather": _kernels})
extend("triton", {"channel_gather": _triton})
extend("reference", {"channel_gather": _reference})


def channel_gather(
    input: Tensor, channels: slice | range | Tensor, batch: slice | range | Tensor | None = None
) -> Tensor:
    """Channels of an activation, and of the samples in `batch` only: `input[batch][:, channels]` in one pass.

    A slice or range is a view where nothing else is asked for; an index or bool tensor never is, whatever its values.
    An index may repeat entries; backward sums their gradients in the order of the index, bitwise the same for any
    number of threads. `channel_scatter` with the same `channels` and `batch` is the inverse.

    Args:
        input: `[N, C, ...]`, any dtype, any strides, any trailing dimensions or none.
        channels: slice or range of channels; bool `[C]`; integers `[K]`; or integers `[B, K]`, whose row j belongs to
            sample j of the result. Negative integers count from the end. uint8 is an index, not a mask. What a bool
            tensor names is counted, for which a call waits on CUDA.
        batch: None for all samples; slice or range; bool `[N]`; or integers `[B]`.

    Returns:
        `[B, K, ...]`, the input's dtype; channels_last where the input is, else contiguous (a view: as it lies).

    Raises:
        TypeError: selectors of other types or dtypes.
        ValueError: shapes or devices that do not fit, a step that is not positive.
        IndexError: an index or range outside of its axis. Traced code raises RuntimeError when it runs; on devices
            other than the CPU, values of an index are left to torch.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _channels.check_activation(input)
    if not isinstance(channels, Tensor) and not isinstance(batch, Tensor):
        return _channels.view_of(input, channels, batch)
    index = _channels.index_of(channels, input.shape[1], "channels", input, most_dims=2)
    rows = None if batch is None else _channels.index_of(batch, input.shape[0], "batch", input)
    _channels.check_rows(index, input.shape[0] if rows is None else rows.shape[0])
    return choose("channel_gather", input.device).ops["channel_gather"](input, index, rows)
