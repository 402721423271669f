"""Reference for `expand_active` and `collect_active`, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..mask import Mask


def expand_active(values: Tensor, mask: Mask) -> Tensor:
    """The weight that has the values in the places of the mask, row after row, and zeros in the others: of the mask's
    shape.

    Args:
        values: `[active]`, any dtype.
        mask: `Mask` of any shape.
    """
    places = mask.dense().reshape(-1).nonzero().squeeze(1)
    return values.new_zeros(mask.numel).index_copy(0, places, values).reshape(mask.shape)


def collect_active(weight: Tensor, mask: Mask) -> Tensor:
    """The active values of a weight of the mask's shape, row after row: `[active]`.

    Args:
        weight: of the mask's shape, any dtype.
        mask: `Mask` of any shape.
    """
    return weight[mask.dense()]
