"""Reference for `expand_active` and `collect_active`, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..mask import Mask


def expand_active(values: Tensor, mask: Mask) -> Tensor:
    """Values `[active]` in the places of the mask, row after row, and zeros in the others: of the mask's shape."""
    return values.new_zeros(mask.shape).masked_scatter(mask.dense(), values)


def collect_active(weight: Tensor, mask: Mask) -> Tensor:
    """The active values of a weight of the mask's shape, row after row: `[active]`."""
    return weight[mask.dense()]
