"""Parameters that have an entry for each active weight, and what optimizers keep of them, when the mask changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .._traced import outside_of_graphs

Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

# State of a weight that does not begin at zero, and the option that it begins at: Rprop's and Adagrad's.
_BEGINNINGS = {"step_size": "lr", "sum": "initial_accumulator_value"}

_unmapped: dict[int, weakref.ref[Tensor]] = {}
_hook: Any = None


def beginning(optimizer: torch.optim.Optimizer, parameter: Tensor, name: str) -> float:
    """What the state `name` of a new weight is."""
    if name not in _BEGINNINGS:
        return 0.0
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    return float(group[_BEGINNINGS[name]])


def holds(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    """Whether the parameter is one of the optimizer's."""
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])


def checked_optimizers(optimizer: Optimizers | None, parameter: Tensor) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers whose state of the parameter can be mapped; no look at a value.

    Raises:
        TypeError: something that is no optimizer, or one whose state is not of single weights (L-BFGS).
        ValueError: an optimizer without the parameter, or state of it of another shape.
        RuntimeError: its state is of the weights before a mask that was set without it.
    """
    several = optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer)
    if several and not isinstance(optimizer, Sequence):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {type(optimizer).__name__}")
    found: Iterable[Any] = () if optimizer is None else optimizer if several else (optimizer,)  # type: ignore[assignment]
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {type(one).__name__}")
        name = type(one).__name__
        if not holds(one, parameter):
            raise ValueError(
                f"optimizer ({name}) must have the values of the layer, {list(parameter.shape)}, and has not: "
                "it was made for another layer, or for a parameter since replaced"
            )
        _check_mapped(one, parameter)
        if isinstance(one, torch.optim.LBFGS):
            raise TypeError(f"optimizer must keep its state by single weights, got {name}: make a new one afterwards")
        for key, value in one.state.get(parameter, {}).items():
            if _elementwise(value, parameter) or not isinstance(value, (Tensor, list, tuple, dict)):
                continue
            if not isinstance(value, Tensor) or value.numel() != 1:
                what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"optimizer ({name}) must keep state of the values' shape, {list(parameter.shape)}, or of one "
                    f"number, got {key!r}: {what}"
                )
    return tuple(found)


def _elementwise(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


@torch.no_grad()
def change(
    parameter: Tensor, moved: Callable[[Tensor, float], Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Maps a parameter, its gradient and its state in the optimizers by `moved` (old, what new weights begin with).

    The parameter stays the object it is. `optimizers` are checked.
    """
    states = [
        (optimizer.state[parameter], name, moved(value, beginning(optimizer, parameter, name)))
        for optimizer in optimizers
        for name, value in optimizer.state.get(parameter, {}).items()
        if _elementwise(value, parameter)
    ]
    values = moved(parameter.detach(), 0.0)
    grad = None if parameter.grad is None else moved(parameter.grad, 0.0)
    replace(parameter, values)
    parameter.grad = grad
    for state, name, value in states:
        state[name] = value


def replace(parameter: Tensor, values: Tensor) -> None:
    """Gives a parameter other data, which may be of another size, and no gradient."""
    parameter.grad = None
    # Torch remembers where a leaf's gradient goes, with the leaf's size, for as long as a graph is alive that has it,
    # and forgets it when the dtype changes.
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = values
    torch.autograd.graph.increment_version(parameter)  # a graph that has saved it says so in its backward pass


def expect_no_state(parameter: Tensor) -> None:
    """Has the next optimizer that steps the parameter refused where it has state of it: that is of other weights."""
    global _hook
    key = id(parameter)
    _unmapped[key] = weakref.ref(parameter, lambda _: _unmapped.pop(key, None))
    if _hook is None:
        _hook = register_optimizer_step_pre_hook(_refuse)


@outside_of_graphs
def _refuse(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not _unmapped:
        return
    parameters: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    for parameter in parameters:
        _check_mapped(optimizer, parameter)
        if _is_unmapped(parameter):
            _unmapped.pop(id(parameter))


def _is_unmapped(parameter: Tensor) -> bool:
    here = _unmapped.get(id(parameter))
    return here is not None and here() is parameter


def _check_mapped(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    if _is_unmapped(parameter) and optimizer.state.get(parameter):
        raise RuntimeError(
            f"{type(optimizer).__name__} has state of the weights that were active before the mask of a compact layer "
            f"({list(parameter.shape)} values) was set: give the optimizer to set_mask, or drop that state by "
            "del optimizer.state[layer.values]"
        )
