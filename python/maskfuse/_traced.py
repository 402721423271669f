"""What code says to a compiler that may trace it, without importing the compiler, which takes a second and triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_when_traced(function: F) -> F:
    """The function, which traced code calls once while it is traced, and whose result is a constant there: what
    `torch.compiler.assume_constant_result` says."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
