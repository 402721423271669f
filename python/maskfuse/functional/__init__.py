"""The ops as functions: checks, choice of backend, call."""

from .gated_linear import gated_linear
from .masked_linear import masked_linear

__all__ = ["gated_linear", "masked_linear"]
