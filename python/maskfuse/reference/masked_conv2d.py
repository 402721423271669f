"""The definition of `masked_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mask import Mask
from ._weight import masked_weight


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    channels: Tensor | None = None,
) -> Tensor:
    """`F.conv2d` with `where(mask, weight, 0)`, or with `weight * mask` for a floating mask.

    Args:
        input: `[batch, in, height, width]`, or without `batch`.
        weight: `[out, in / groups, kernel_height, kernel_width]`.
        mask: `Mask` or bool or 0/1 integer tensor of the weight's shape (binary), or floating tensor (real-valued).
        bias: `[out]` or None.
        stride, padding, dilation, groups: as `F.conv2d` has them.
        channels: bool `[batch, in]` or `[in]`: the input is 0 where it is false. None: as it is.
    """
    if channels is not None:
        input = torch.where(channels[..., None, None], input, torch.zeros((), dtype=input.dtype))
    return F.conv2d(input, masked_weight(weight, mask), bias, stride, padding, dilation, groups)
