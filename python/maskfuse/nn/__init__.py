"""Drop-in twins of `torch.nn` layers."""

from .masked_linear import MaskedLinear

__all__ = ["MaskedLinear"]
