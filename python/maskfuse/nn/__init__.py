"""Drop-in twins of `torch.nn` layers."""

from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear

__all__ = ["MaskedConv2d", "MaskedLinear"]
