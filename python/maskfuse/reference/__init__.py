"""What is right: every op in plain PyTorch, in any floating dtype, differentiated by PyTorch itself."""

from .gated_linear import gated_linear
from .masked_linear import masked_linear

__all__ = ["gated_linear", "masked_linear"]
