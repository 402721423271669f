"""What every part of the package checks, and how error messages name a value."""

from __future__ import annotations

from torch import Tensor, nn


def describe(value: object) -> str:
    """The value as error messages name it: dtype and shape of a tensor, else the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return type(value).__name__


def check_module(module: object, name: str = "model") -> None:
    """Raises TypeError where an argument is no module; `name` is the argument's."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be an nn.Module, got {type(module).__name__}")
