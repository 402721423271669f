"""What is right: every op in plain PyTorch, in any floating dtype, differentiated by PyTorch itself."""

from .gated_conv2d import gated_conv2d
from .gated_linear import gated_linear
from .masked_conv2d import masked_conv2d
from .masked_linear import masked_linear

__all__ = ["gated_conv2d", "gated_linear", "masked_conv2d", "masked_linear"]
