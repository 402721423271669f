"""The definition of `mask_gradient`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask import Mask


def mask_gradient(input: Tensor, mask: Mask | Tensor) -> Tensor:
    """`input`, whose gradient is `where(mask, grad, 0)`, or `grad * mask` with a floating mask.

    Args:
        input: any shape, with a floating mask finite.
        mask: the input's shape. `Mask`, bool or 0/1 integers: binary. Floating: real-valued, a constant.
    """
    if isinstance(mask, Mask):
        mask = mask.dense()
    if mask.is_floating_point():
        return input.detach() + (input - input.detach()) * mask.detach()
    return torch.where(mask.bool(), input, input.detach())
