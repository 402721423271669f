"""The ops as functions: checks, choice of backend, call."""

from .masked_linear import masked_linear

__all__ = ["masked_linear"]
