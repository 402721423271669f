"""The weight that a masked layer computes with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask import Mask


def masked_weight(weight: Tensor, mask: Mask | Tensor) -> Tensor:
    """`where(mask, weight, 0)`, or `weight * mask` with a floating mask."""
    if isinstance(mask, Mask):
        mask = mask.dense()
    if mask.is_floating_point():
        return weight * mask
    # A masked weight takes no part even when it is NaN: 0 * NaN would.
    return torch.where(mask.bool(), weight, torch.zeros((), dtype=weight.dtype))
