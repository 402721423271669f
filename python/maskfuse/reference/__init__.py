"""What is right: every op in plain PyTorch, in any floating dtype, differentiated by PyTorch itself."""

from .masked_linear import masked_linear

__all__ = ["masked_linear"]
