"""`freeze`: a parameter that takes part in full, and is trained in part."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_module, describe
from .._sharded import is_sharded, local, local_part, placed_as
from ..functional._check import floating, mask_of
from ..mask import Mask
from . import _unmet

# Attributes of a frozen parameter. Its class stays what it is, since optimizers ask for the exact type; so what copies
# and pickles a parameter, which drop hooks, is replaced on the instance.
_FROZEN = "_maskfuse_frozen"
_OURS = (_FROZEN, "__deepcopy__", "__reduce_ex__")


class _Frozen:
    """The mask of a parameter, and the hook that masks its gradient."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.handles: list[Any] = []

    def masked(self, grad: Tensor) -> Tensor:
        mask = self.mask.to(grad.device)
        if not grad.is_meta:  # where bits have no values
            self.mask = mask  # the parameter has moved, once for all
        return ops.masked(grad, placed_as(mask.dense(), grad))

    @torch.no_grad()
    def accumulated(self, parameter: Tensor) -> None:
        """Masks a gradient that has not come through the parameter, as FSDP2's does not."""
        grad = parameter.grad
        if grad is not None:
            local(grad).masked_fill_(local_part(~self.mask.to(grad.device).dense(), grad), 0)


def freeze(parameter: nn.Parameter, mask: Mask | Tensor) -> nn.Parameter:
    """Trains a parameter only where the mask is 1; forward passes use all of it. Returns the parameter.

    Its gradient is masked before it is accumulated: exactly +0.0 where the mask is 0, for `backward` and
    `torch.autograd.grad`, so norms and clipping see active entries alone. An optimizer with weight decay, or with
    momentum from before, moves frozen entries nevertheless: `maskfuse.protect` keeps them, bit for bit.

    Freezing again replaces the mask; `unfreeze` ends it and `frozen_mask` tells. It belongs to the parameter object:
    deepcopy, pickle, `torch.save` of a module, moves and casts keep it, and so do the masked, compact, gated and plain
    twins that layers make of each other; a `state_dict` does not have it, and what puts another parameter in its place
    loses it (`load_state_dict(assign=True)`, `to_empty`, `functional_call`,
    `fully_shard`): do that in `with keep_frozen(model):`, or freeze afterwards. A parameter that FSDP2 has sharded is
    frozen by a mask of the full shape, and the gradient of each shard is masked when it has been reduced.

    Args:
        parameter: any shape, float32, float64, bfloat16 or float16.
        mask: the parameter's shape. `Mask`, bool or 0/1 integers; it is moved to the parameter's device.

    Raises:
        TypeError: `parameter` is no `nn.Parameter` or of another dtype, or the mask is floating
            (`mask_gradient` takes a real-valued one).
        ValueError: the shapes differ, or integers other than 0 and 1.
    """
    _check_parameter(parameter)
    floating(parameter, "parameter")
    if isinstance(mask, Tensor):
        if mask.is_floating_point():
            raise TypeError(f"mask must be a Mask, bool or 0/1 integers, got {describe(mask)}")
        mask = mask if parameter.is_meta else mask.to(parameter.device)
    elif isinstance(mask, Mask) and not parameter.is_meta:
        mask = mask.to(parameter.device)
    if parameter.dim() == 0:
        raise ValueError("parameter must have at least one dimension: requires_grad_(False) freezes a scalar")
    checked = mask_of(mask, parameter, Mask.from_dense, "parameter")
    assert isinstance(checked, Mask)
    unfreeze(parameter)
    frozen = _Frozen(checked)
    trained = parameter.requires_grad
    parameter.requires_grad_(True)  # else torch takes no hook; the hook outlasts the flag
    frozen.handles.append(parameter.register_hook(frozen.masked))
    if is_sharded(parameter):
        frozen.handles.append(parameter.register_post_accumulate_grad_hook(frozen.accumulated))
    parameter.requires_grad_(trained)
    attributes: Any = parameter
    here = weakref.ref(parameter)  # a cycle would keep its memory until the next garbage collection
    setattr(attributes, _FROZEN, frozen)
    attributes.__deepcopy__ = functools.partial(_deepcopy, here)
    attributes.__reduce_ex__ = functools.partial(_reduce, here)
    _unmet.add(parameter, lambda parameter: (parameter, frozen_mask(parameter)))
    return parameter


def unfreeze(parameter: nn.Parameter) -> nn.Parameter:
    """Ends what `freeze` began; returns the parameter. One that is not frozen stays as it is.

    Args:
        parameter: of any shape and dtype.

    Raises:
        TypeError: `parameter` is no `nn.Parameter`.
    """
    _check_parameter(parameter)
    frozen = parameter.__dict__.get(_FROZEN)
    if frozen is not None:
        for handle in frozen.handles:
            handle.remove()
        for name in _OURS:
            delattr(parameter, name)
    return parameter


def frozen_mask(parameter: Tensor) -> Mask | None:
    """The mask that a parameter is frozen by (1: trained), or None where it is not frozen.

    Args:
        parameter: of any shape and dtype; any other object is not frozen.
    """
    frozen = getattr(parameter, _FROZEN, None)
    return None if frozen is None else frozen.mask


@contextmanager
def keep_frozen(model: nn.Module) -> Iterator[None]:
    """Parameters that take the place of frozen ones in it are frozen by the same masks::

        with keep_frozen(model):
            fully_shard(model)

    So do `load_state_dict(assign=True)`, `to_empty`, and whatever else puts a parameter under a name that had one.

    Args:
        model: any module.

    Raises:
        TypeError: `model` is no module.
        ValueError: when it ends: the new parameter has another shape.
    """
    check_module(model)
    known = [
        (module, name, mask, weakref.ref(parameter))
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and (mask := frozen_mask(parameter)) is not None
    ]
    try:
        yield
    finally:
        for module, name, mask, before in known:
            now = module._parameters.get(name)
            if now is not None and now is not before() and frozen_mask(now) is None:
                freeze(now, mask)


def _check_parameter(parameter: object) -> None:
    if not isinstance(parameter, nn.Parameter):
        raise TypeError(f"parameter must be an nn.Parameter, got {describe(parameter)}")


def _deepcopy(here: weakref.ref[Any], memo: dict[int, Any]) -> Any:
    parameter: Any = here()
    return freeze(type(parameter).__deepcopy__(parameter, memo), parameter._maskfuse_frozen.mask)


def _reduce(here: weakref.ref[Any], protocol: int) -> tuple[Any, ...]:
    parameter: Any = here()
    kind = type(parameter) if issubclass(type(parameter), nn.Parameter) else nn.Parameter
    plain = kind(parameter.data, parameter.requires_grad)  # pickles as any, in the same memory
    plain.__dict__.update({name: value for name, value in parameter.__dict__.items() if name not in _OURS})
    return freeze, (plain, parameter._maskfuse_frozen.mask)


torch.serialization.add_safe_globals([freeze])

__all__ = ["freeze", "frozen_mask", "keep_frozen", "unfreeze"]
