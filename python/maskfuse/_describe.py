"""How error messages name a value."""

from __future__ import annotations

from torch import Tensor


def describe(value: object) -> str:
    """The value as error messages name it: dtype and shape of a tensor, else the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return type(value).__name__
