"""Numbers that layers are made with, checked."""

from __future__ import annotations

from .._checks import describe


def number(value: object, name: str) -> float:
    """The value as a float.

    Raises:
        TypeError: no int or float.
        ValueError: NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if value != value:
        raise ValueError(f"{name} must not be NaN")
    return float(value)


def positive(value: object, name: str) -> float:
    """The value as a float.

    Raises:
        TypeError: no int or float.
        ValueError: not positive, or not finite.
    """
    checked = number(value, name)
    if not 0 < checked < float("inf"):
        raise ValueError(f"{name} must be positive, got {checked}")
    return checked
