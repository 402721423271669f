"""Arguments of convolutions, as `F.conv2d` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import describe
from . import _check

Pair = int | Sequence[int]

_MOST = 2**31  # beyond which sizes would overflow


class Geometry(NamedTuple):
    """Stride, padding and dilation of height and width; padding is the same on both sides."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _pair(value: Pair, name: str, least: int) -> list[int]:
    values = [value, value] if isinstance(value, (int, torch.SymInt)) else value
    if not isinstance(values, Sequence) or any(not isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(f"{name} must be an integer or two of them, got {value!r}")
    values = list(values) * (2 if len(values) == 1 else 1)
    if len(values) != 2 or any(v < least or v >= _MOST for v in values):
        raise ValueError(f"{name} must be an integer or two of them, at least {least} and below 2^31, got {value!r}")
    return values


def _of_nothing(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution without input channels, where it is the bias, or without output channels, which torch refuses."""
    out, inp = weight.shape[0], images.shape[1]
    kernels = weight.sum() + weight.new_zeros(max(1, out), max(1, inp), *weight.shape[2:])
    images = F.pad(images, (0, 0, 0, 0, 0, 1)) if inp == 0 else images
    return F.conv2d(images, kernels, bias if out > 0 else None, *geometry[:3])[:, :out]


def convolve(
    run: Callable[[Tensor, Geometry], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Checks a convolution's operands and calls `run` on a batch of images, padded where `run` could not.

    Raises:
        TypeError: dtypes that differ, or padding of another kind.
        ValueError: shapes, devices or a geometry that do not fit.
    """
    _check.same("input", input, "weight", weight)
    if bias is not None:
        _check.floating(bias, "bias")
        _check.same("bias", bias, "weight", weight)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape {[weight.shape[0]]}, got {describe(bias)}")
    if not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must be a divisor of the {weight.shape[0]} output channels, got {groups!r}")
    channels = weight.shape[1] * groups
    if input.dim() not in (3, 4) or input.shape[-3] != channels:
        raise ValueError(
            f"input must have shape [batch, {channels}, height, width] or [{channels}, height, width] for weight "
            f"{list(weight.shape)} in {groups} groups, got {list(input.shape)}"
        )
    kernel = list(weight.shape[2:])
    strides, dilations = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    images = input if input.dim() == 4 else input.unsqueeze(0)
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding must be integers, 'valid' or 'same', got {padding!r}")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        if padding == "same" and strides != [1, 1]:
            raise ValueError(f"padding='same' needs a stride of 1, got {stride!r}")
        pads = [t // 2 for t in total]
        if any(t % 2 for t in total):  # one more behind than in front
            images = F.pad(images, (0, total[1] % 2, 0, total[0] % 2))
    else:
        pads = _pair(padding, "padding", 0)
    padded = [size + 2 * pad for size, pad in zip(images.shape[2:], pads, strict=True)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if any(k < 1 for k in kernel) or any(size < r for size, r in zip(padded, reach, strict=True)):
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilations} must not be empty or exceed the padded input, {padded}"
        )
    geometry = Geometry(strides, pads, dilations, groups)
    output = _of_nothing(images, weight, bias, geometry) if 0 in weight.shape[:2] else run(images, geometry)
    return output if input.dim() == 4 else output.squeeze(0)


def check_weight(weight: Tensor) -> None:
    """Raises ValueError unless the weight has a convolution's dimensions."""
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape [out, in / groups, height, width], got {list(weight.shape)}")
