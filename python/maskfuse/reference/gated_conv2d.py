"""The definition of `gated_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_conv2d(
    input: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
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
