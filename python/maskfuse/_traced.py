"""What code says to a compiler that may trace it, without importing the compiler, which takes a second and triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

# What torch.jit.is_tracing asks, without a frame of Python, which small layers would feel.
is_jit_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)


def constant_when_traced(function: F) -> F:
    """The function, which traced code calls once while it is traced, and whose result is a constant there: what
    `torch.compiler.assume_constant_result` says."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def func_is_tracing(function: Callable[..., Any]) -> Callable[[], bool]:
    """What traced code asks to know whether it is under a `torch.func` transform, in which it calls `function`.

    That one then is a node of its own in the graph, as if `torch.compiler.allow_in_graph` had been said of it before:
    the compiler behind the graph meets its Function, not the derivatives of what it calls.
    """

    @constant_when_traced
    def asks() -> bool:
        # Dynamo runs this while it traces; it guards on the stack of transforms by itself.
        active = torch._C._are_functorch_transforms_active()
        if active:
            torch.compiler.allow_in_graph(function)
        return active

    return asks


def outside_of_graphs(function: F) -> F:
    """The function, for which traced code leaves its graph: what `torch.compiler.disable` says."""
    return cast(F, torch._disable_dynamo(function))
