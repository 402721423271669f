"""The padding of convolution layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def padded(layer: Any, input: Tensor) -> tuple[Tensor, Any]:
    """The input of an `nn.Conv2d` or its like, padded as its mode says, and the zeros that are left to pad."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)
