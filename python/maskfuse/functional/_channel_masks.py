"""Masks on the input channels of a product, one a sample: samples with one mask are computed together, on its channels.

Three ways to the same numbers. The plain one writes zeros into a copy of the input and runs the masked op on it. The
compact one gathers the active channels of the samples, group after group of samples that share a mask, and of the
weight, and runs torch's own product on what is left. For convolutions in float32 and float64 a kernel reads each
image's active channels where they lie instead. Which is fastest is estimated in multiply-adds: see `groups_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._checks import describe
from .._memory_format import memory_format_of
from ..mask import Mask
from . import _channels, _check

# Multiply-adds of a dense product in whose time one element is copied, ...
_COPY = 32
# ... one weight is gathered for a group, or for a window of pixels also put in the order of torch's convolution, ...
_WEIGHT = 64
_WINDOW_WEIGHT = 192
# ... and a group's calls are made, which for images are more of them.
_CALL = 1 << 22
_IMAGE_CALL = 1 << 23
# What a multiply-add takes, in those of a dense convolution, of few images with fewer channels, and where channels are
# read in place.
_FEWER = 1.25
_IN_PLACE = 1.2
# Images that the kernel reads in place: it computes in these, where torch may have faster units for half types.
_IN_PLACE_TYPES = (torch.float32, torch.float64)


class Groups(NamedTuple):
    """Samples that share a mask, group after group.

    Attributes:
        order: int64 `[N]`, the samples of the first group, then of the second ...; None where they lie so.
        sizes: samples of each group.
        counts: active channels of each group.
        channels: int64 `[G, K]` with K the largest count: the active channels of each group in rising order, filled up
            with inactive ones.
        batched: each sample has a group of its own, and one product of matrices does them all.
    """

    order: Tensor | None
    sizes: list[int]
    counts: list[int]
    channels: Tensor
    batched: bool


def check(channels: Tensor, input: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `channels` is a mask on the channels of `input`; `shape` is the input's up to its channels.

    Raises:
        TypeError: no bool tensor.
        ValueError: another shape or device.
    """
    if not isinstance(channels, Tensor) or channels.dtype != torch.bool:
        raise TypeError(f"channels must be a bool tensor, got {describe(channels)}")
    shapes = [list(shape)[-1:], list(shape)]
    if list(channels.shape) not in shapes:
        wanted = " or ".join(str(s) for s in (shapes if len(shape) > 1 else shapes[:1]))
        raise ValueError(f"channels must have shape {wanted} for input {describe(input)}, got {describe(channels)}")
    _check.same_device("channels", channels, "input", input)


def zeroed(input: Tensor, channels: Tensor, trailing: int = 0) -> Tensor:
    """The input with zeros in its inactive channels, whatever they hold; `trailing` dimensions lie behind them."""
    if _channels.values_are_known(channels) and bool(channels.all()):
        return input
    return torch.where(channels.reshape(*channels.shape, *[1] * trailing), input, input.new_zeros(()))


def effective_weight(weight: Tensor, mask: Mask | Tensor) -> Tensor:
    """The weight as a dense product takes it."""
    if not isinstance(mask, Mask):
        return weight * mask
    return weight if mask.known_full else torch.where(mask.dense(), weight, weight.new_zeros(()))


def _share(mask: Mask | Tensor) -> float:
    """What the masked op takes of a dense product's time, as measured: a third at 90 % masked, a fifth at 95 %."""
    if not isinstance(mask, Mask):
        return 1.0
    density = mask.density
    return density if mask.structure == "channels" else min(1.0, 0.1 + 2 * density)


def groups_of(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    channels: Tensor,
    positions: int = 1,
    pointwise: bool = False,
) -> Groups | Literal["in place"] | None:
    """The groups in which to compute, "in place", or None where a zeroed input is estimated to be faster.

    The compact way counts a multiply-add for each sample, position of the output and active weight, 32 for each element
    that it copies (active channels of the input and, where there are several groups, the output), 64 for each active
    weight of a group, 192 where the kernel is no single pixel, and 2^22 for each group (once where one product does
    them all). For images in half types it counts 1.25 for a multiply-add, output elements twice, and 2^23 for a group;
    others are read in place, which counts 1.2 for a multiply-add and nothing else. The plain way counts the
    multiply-adds of all channels, less what the weight's own mask saves, and 32 for each element of the input. The
    plain way is taken wherever values may not be looked at: in traced or transformed code, and on other devices than
    the CPU.

    Args:
        input: `[N, C, ...]`.
        weight: `[O, C, ...]`.
        mask: the weight's.
        channels: bool `[N, C]` or `[C]`.
        positions: results that a sample has for each output channel.
        pointwise: a convolution by single pixels that leaves none out.
    """
    samples, width = input.shape[:2]
    if not _channels.values_are_known(input) or not _channels.values_are_known(channels):
        return None
    if samples == 0 or width == 0 or weight.shape[0] == 0:
        return None
    a_channel = weight.numel() // width  # weights that meet one input channel
    plane = math.prod(input.shape[2:])
    plain = samples * width * (a_channel * positions * _share(mask) + plane * _COPY)
    gathered = _WEIGHT if math.prod(weight.shape[2:]) == 1 else _WINDOW_WEIGHT
    masked_copy = 0 if isinstance(mask, Mask) and mask.known_full else weight.numel() * _COPY

    image = weight.dim() == 4
    one_call, fewer = (_IMAGE_CALL, _FEWER) if image else (_CALL, 1)
    if image and input.dtype in _IN_PLACE_TYPES:
        active = int(channels.count_nonzero()) * (samples if channels.dim() == 1 else 1)
        return "in place" if _IN_PLACE * active * a_channel * positions + masked_copy < plain else None

    members: dict[tuple[int, ...], list[int]] = {}
    if channels.dim() == 1 or samples == 1:
        patterns, sizes, order = channels.reshape(1, width), [samples], None
    else:
        for sample, row in enumerate(torch.ops.maskfuse.mask_pack(channels).tolist()):
            members.setdefault(tuple(row), []).append(sample)
            if len(members) * one_call > plain and not pointwise:
                return None
        together = [sample for group in members.values() for sample in group]
        sizes = [len(group) for group in members.values()]
        order = None if together == list(range(samples)) else torch.tensor(together)
        patterns = channels[torch.tensor([group[0] for group in members.values()])]
    counts = patterns.sum(1).tolist()
    largest = max(counts)
    if largest == 0:
        return None
    batched = pointwise and 1 < len(sizes) == samples and min(counts) == largest
    outputs = samples * weight.shape[0] * positions if len(sizes) > 1 and not batched else 0
    compact = (
        sum(size * count for size, count in zip(sizes, counts, strict=True)) * a_channel * positions * fewer
        + (samples * largest * plane + outputs * (2 if image else 1)) * _COPY
        + sum(counts) * a_channel * gathered
        + masked_copy
        + (1 if batched else len(sizes)) * one_call
    )
    if compact >= plain:
        return None
    index = _channels.active_first(patterns)[:, :largest].contiguous()
    return Groups(order, sizes, counts, index, batched)


def compute(
    groups: Groups,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    trailing: Sequence[int] = (),
) -> Tensor:
    """The product of each group's active channels, `[N, O, *trailing]`, differentiable in all operands.

    `product` maps (input `[n, K, ...]`, weight `[O, K, ...]`, bias) to `[n, O, *trailing]`. All channels that take part
    are gathered in one pass, so that backward puts their gradients back in one pass too.
    """
    samples, width, out = input.shape[0], input.shape[1], weight.shape[0]
    rows = groups.channels[0] if len(groups.sizes) == 1 else _repeated(groups)
    values = ops.channel_gather(input, rows, width, groups.order, samples)
    if groups.batched:
        weights = ops.channel_gather(weight.flatten(1), groups.channels.flatten(), width, None, out)
        return _batched(values, weights.unflatten(1, groups.channels.shape).movedim(1, 0), bias)
    results = []
    for i, part in enumerate(values.split(groups.sizes)):
        count = groups.counts[i]
        if count == 0:
            row = weight.new_zeros(out) if bias is None else bias
            row = row.reshape(1, out, *[1] * len(trailing)).expand(part.shape[0], out, *trailing)
            results.append(row.contiguous(memory_format=memory_format_of(values)))
            continue
        if count < part.shape[1]:  # what the row was filled up with must not even lie beside what is read
            part = part[:, :count].contiguous(memory_format=memory_format_of(values))
        active = ops.channel_gather(weight, groups.channels[i, :count], width, None, out)
        results.append(product(part, active, bias))
    joined = results[0] if len(results) == 1 else torch.cat(results)
    if groups.order is None:
        return joined
    return ops.channel_gather(joined, torch.arange(out), out, groups.order.argsort(), samples)


def _repeated(groups: Groups) -> Tensor:
    return groups.channels.repeat_interleave(torch.tensor(groups.sizes), 0)


def _batched(values: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """`[N, O, *]` from `[N, K, *]` and a matrix for each sample, `[N, O, K]`; channels_last from channels_last."""
    if values.dim() == 4 and memory_format_of(values) == torch.channels_last:
        pixels = values.movedim(1, -1)
        left, right = pixels.flatten(1, 2), weights.transpose(1, 2)
        product = torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)
        return product.unflatten(1, pixels.shape[1:3]).movedim(-1, 1)
    planes = values.flatten(2)
    product = torch.bmm(weights, planes) if bias is None else torch.baddbmm(bias[:, None], weights, planes)
    return product.unflatten(2, values.shape[2:])
