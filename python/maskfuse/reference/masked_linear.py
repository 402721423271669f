"""The definition of `masked_linear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mask import Mask
from ._weight import masked_weight


def masked_linear(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None = None,
    channels: Tensor | None = None,
) -> Tensor:
    """`input @ where(mask, weight, 0).T + bias`, or `input @ (weight * mask).T + bias` with a floating mask.

    Args:
        input: `[..., in]`.
        weight: `[out, in]`.
        mask: `Mask` or bool or 0/1 integer tensor `[out, in]` (binary), or floating tensor (real-valued).
        bias: `[out]` or None.
        channels: bool of the input's shape or `[in]`: the input is 0 where it is false. None: as it is.
    """
    if channels is not None:
        input = torch.where(channels, input, torch.zeros((), dtype=input.dtype))
    return F.linear(input, masked_weight(weight, mask), bias)
