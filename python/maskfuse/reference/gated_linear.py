"""The definition of `gated_linear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_linear(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ (weight * sigmoid(scores)).T + bias`.

    Args:
        input: `[..., in]`.
        weight, scores: `[out, in]`.
        bias: `[out]` or None.
    """
    return F.linear(input, weight * torch.sigmoid(scores), bias)
