"""Masks that no optimizer has met since they were set, and the one look at the optimizer that steps next.

Momentum from before a mask was set moves weights under it, and so does weight decay where they are not zero, unless
`maskfuse.protect` keeps the optimizer from it. Later steps bring no new danger: the gradient is masked by then.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .._sharded import is_sharded
from .._traced import outside_of_graphs
from ..mask import Mask

PROTECTION = "_maskfuse_protection"  # the attribute of a protected optimizer

# State that moves a weight without a gradient. Averages of squares do not, and some are never zero.
_MOMENTUM = ("momentum_buffer", "exp_avg")

_unmet: dict[int, tuple[weakref.ref[Any], Callable[[Any], tuple[Tensor | None, Mask | None]]]] = {}
_hook: Any = None


def add(owner: Any, weight_and_mask: Callable[[Any], tuple[Tensor | None, Mask | None]]) -> None:
    """Has the next step of an optimizer of the owner's weight looked at; owners go as they please."""
    global _hook
    key = id(owner)
    _unmet[key] = (weakref.ref(owner, lambda _: _unmet.pop(key, None)), weight_and_mask)
    if _hook is None:
        _hook = register_optimizer_step_pre_hook(_meet)


def forget(owner: Any) -> None:
    """Has no step looked at for the owner, which has no mask any more."""
    _unmet.pop(id(owner), None)


@outside_of_graphs
def _meet(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not _unmet:
        return
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for key, (here, weight_and_mask) in list(_unmet.items()):
        owner = here()
        weight, mask = (None, None) if owner is None else weight_and_mask(owner)
        if weight is None or id(weight) not in groups or _is_capturing(weight):
            continue
        _unmet.pop(key, None)
        if mask is None or hasattr(optimizer, PROTECTION):
            continue
        reason = _danger(optimizer, groups[id(weight)], weight, mask)
        if reason is not None:
            warnings.warn(
                f"{type(optimizer).__name__} {reason}, and moves weights under a mask of shape {list(mask.shape)}; "
                "maskfuse.protect(optimizer, model) keeps them where they are",
                UserWarning,
                stacklevel=5,  # behind what keeps this out of graphs, twice, and the optimizer's wrapper
            )


def _is_capturing(weight: Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _danger(optimizer: torch.optim.Optimizer, group: dict[str, Any], weight: Tensor, mask: Mask) -> str | None:
    if is_sharded(weight) or weight.is_meta or mask.shape != weight.shape:
        return None
    inactive = (~mask.to(weight.device)).dense()
    for name, value in optimizer.state.get(weight, {}).items():
        momentum = name in _MOMENTUM and isinstance(value, Tensor) and value.shape == weight.shape
        if momentum and bool(torch.where(inactive, value, 0).any()):
            return f"has momentum ({name!r}) from before a mask was set"
    if group.get("weight_decay", 0) and bool(torch.where(inactive, weight.detach(), 0).any()):
        return f"has a weight decay of {float(group['weight_decay']):.3g}"
    return None
