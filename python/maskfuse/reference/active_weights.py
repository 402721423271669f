"""Reference for `expand_active` and `collect_active`, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask import Mask


def expand_active(values: Tensor, mask: Mask) -> Tensor:
    """The weight that has the values in the places of the mask, row after row, and zeros in the others: of the mask's
    shape.

    Args:
        values: `[active]`, any dtype.
        mask: `Mask` of any shape.
    """
    active = mask.dense().reshape(-1)
    # A masked weight is the zero in front of the values. No size depends on the bits, so this exports.
    return torch.cat([values.new_zeros(1), values])[active.cumsum(0) * active].reshape(mask.shape)


def collect_active(weight: Tensor, mask: Mask) -> Tensor:
    """The active values of a weight of the mask's shape, row after row: `[active]`.

    Args:
        weight: of the mask's shape, any dtype.
        mask: `Mask` of any shape.
    """
    return weight[mask.dense()]
