"""Triton's interpreter, made faster for tests."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """The interpreter puts its own functions into Triton's language before it runs a kernel, and again in every call of
    a helper, which takes half of a small kernel's time. Once for each module's helpers and launch is enough."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_new(function: Any) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return interpreter._LangPatchScope()
        patched.add(module)
        return patch(function)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_anew
