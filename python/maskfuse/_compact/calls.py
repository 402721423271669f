"""`Calls`: which module is running, and what each returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Calls:
    """Hooks on every module of a model for the time of a `with` block.

    `running` are the modules that have begun and not returned, the innermost last; where a call raises they stay there.
    `returned` is called with the name, the module and what it returned.
    """

    def __init__(self, model: nn.Module, returned: Callable[[str, nn.Module, Any], None] | None = None) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._returned = returned
        self._handles: list[Any] = []
        self.running: list[nn.Module] = []

    def __enter__(self) -> Calls:
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._begin, prepend=True))
            self._handles.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def innermost(self) -> nn.Module | None:
        """The module that is running."""
        return self.running[-1] if self.running else None

    def where(self) -> str:
        """The innermost module that is running, as messages name it."""
        if not self.running:
            return "the model"
        module = self.running[-1]
        return f"layer {self._names[module]!r} ({type(module).__name__})" if self._names[module] else "the model"

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
        if self._returned is not None:
            self._returned(self._names[module], module, output)
