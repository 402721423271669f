"""`compact_linear`: a linear layer of whose weight there are the active values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops, reference
from ..backends import choose, extend
from ..mask import Mask
from . import _backends, _channel_masks, _check
from .active_weights import check_values


def _kernels(input: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, packed: Sequence[Tensor] = ()) -> Tensor:
    plan = mask.plan  # first: what is known is known from it
    if mask.known_full:
        return F.linear(input, values.reshape(mask.shape), bias)
    if packed and _read_packed_alone(input, values, mask, bias, packed):
        unread = input.new_empty(mask.shape)
        return ops.masked_linear_unrecorded(input, unread, mask.bits, [*plan, *packed], bias)
    return ops.compact_linear(input, values, mask.bits, plan, bias, list(mask.shape))


def _read_packed_alone(
    input: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, packed: Sequence[Tensor]
) -> bool:
    """Whether the kernel that the planner chooses for a call reads of the weight what was packed, and nothing else."""
    if not ops.plain() or ops.is_recorded((input, values, bias)):
        return False
    rows = math.prod(input.shape[:-1])
    found = torch.ops.maskfuse.masked_linear_candidates(
        "forward", rows, mask.bits, mask.shape[1], [*mask.plan, *packed], input.dtype
    )
    kernel = found.split(maxsplit=1)[0]
    return kernel == "decode" or (kernel == "accumulate" and packed[-1].numel() > 0)


def _triton(input: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, packed: Sequence[Tensor] = ()) -> Tensor:
    lists = mask.block_lists
    if mask.known_full:
        return F.linear(input, values.reshape(mask.shape), bias)
    return _backends.triton.compact_linear(input, values, mask.bits, lists, bias, list(mask.shape))


def _reference(input: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, packed: Sequence[Tensor] = ()) -> Tensor:
    return F.linear(input, reference.expand_active(values, mask), bias)


extend("cpu", {"compact_linear": _kernels})
extend("cuda", {"compact_linear": _kernels})
extend("triton", {"compact_linear": _triton})
extend("reference", {"compact_linear": _reference})


def stand_in(values: Tensor, mask: Mask) -> Tensor:
    """What checks take for the weight: its shape, dtype and device, in the memory of one element."""
    return values.new_empty(1).expand(mask.shape)


def compact_linear(
    input: Tensor, values: Tensor, mask: Mask, bias: Tensor | None = None, channels: Tensor | None = None
) -> Tensor:
    """`masked_linear` of `expand_active(values, mask)`, of which nothing of the weight's size is kept for backward.

    Each pass makes the weight, runs the kernel that `masked_linear` would, and drops it: its time is that of
    `masked_linear` and a copy of the weight. The gradient of `values` is that of the active weights alone.

    Args:
        input: `[..., in]`, any strides, float32, float64, bfloat16 or float16.
        values: `[mask.active]`, the active weights row after row, the input's dtype and device.
        mask: `[out, in]`, on that device.
        bias: `[out]`, the input's dtype and device, or None.
        channels: bool of the input's shape, or `[in]`: input features that take part, or None for all. The input is
            zeroed where it is false.

    Returns:
        `[..., out]`, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, dtypes that differ, or no `Mask`.
        ValueError: shapes, a number of values, or devices that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    return checked_compact_linear(input, values, mask, bias, channels=channels)


def checked_compact_linear(
    input: Tensor,
    values: Tensor,
    mask: Mask,
    bias: Tensor | None,
    packed: Sequence[Tensor] = (),
    channels: Tensor | None = None,
) -> Tensor:
    """`compact_linear` of values that may have been packed: `packed` is what the op `masked_linear_pack` gave."""
    _check.floating(input, "input")
    check_values(values, mask, 2)
    input, values, bias = _check.autocast(input, values, bias)
    _check.linear_operands(input, stand_in(values, mask), bias)
    if channels is not None:
        _channel_masks.check(channels, input, input.shape)
        input = _channel_masks.zeroed(input, channels)
    run: Any = choose("compact_linear", input.device).ops["compact_linear"]
    return run(input, values, mask, bias, packed)
