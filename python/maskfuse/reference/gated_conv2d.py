"""The definition of `gated_conv2d`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_conv2d(
    input: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` with `weight * sigmoid(scores)`.

    Args:
        input: `[batch, in, height, width]`, or without `batch`.
        weight, scores: `[out, in / groups, kernel_height, kernel_width]`.
        bias: `[out]` or None.
        stride, padding, dilation, groups: as `F.conv2d` has them.
    """
    return F.conv2d(input, weight * torch.sigmoid(scores), bias, stride, padding, dilation, groups)
