"""The definition of `masked_linear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mask import Mask


def masked_linear(input: Tensor, weight: Tensor, mask: Mask | Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ where(mask, weight, 0).T + bias`, or `input @ (weight * mask).T + bias` with a floating mask.

    Args:
        input: `[..., in]`.
        weight: `[out, in]`.
        mask: `Mask` or bool or 0/1 integer tensor `[out, in]` (binary), or floating tensor (real-valued).
        bias: `[out]` or None.
    """
    if isinstance(mask, Mask):
        mask = mask.dense()
    if mask.is_floating_point():
        return F.linear(input, weight * mask, bias)
    # A masked weight takes no part even when it is NaN: 0 * NaN would.
    return F.linear(input, torch.where(mask.bool(), weight, torch.zeros((), dtype=weight.dtype)), bias)
