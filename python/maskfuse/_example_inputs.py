"""What a person gives as example inputs, as the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: of one value, a tuple or list, or a mapping of names."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}
