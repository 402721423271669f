"""`protect`: no optimizer moves a masked or frozen weight."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import ops
from .._sharded import is_sharded, local, local_part
from .._traced import outside_of_graphs
from ..mask import Mask
from ..nn._masked import weight_of
from ..nn._trained import masked_layers, trained_parts
from ..nn._unmet import PROTECTION

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def protect(optimizer: AnyOptimizer, model: nn.Module) -> AnyOptimizer:
    """Makes an optimizer leave the masked weights of a model where they are; returns the optimizer.

    In every step, whatever weight decay, momentum and moments from before a mask was set would do, the weights under
    the mask of a masked layer and the frozen entries of a parameter (`nn.freeze`) keep their values bit for bit, and
    the others get the update that the optimizer gives to the gradient with zeros under the mask. It works by hooks
    around `step`: before it the gradient is masked (again; a closure's as soon as it returns), after it the values
    under the mask are put back, and between the calls of a closure too. So it serves any `torch.optim.Optimizer`. Its
    `state` is the optimizer's own affair: moments under the mask fade as they would, and are not reset.

    Masks are looked up in each step, so `set_mask`, `nn.freeze`, new layers and `add_param_group` need no second call.
    A weight that several masked layers share stays where all of them mask it, whatever else reads it. A second call
    with the same model changes nothing; with another one it protects both. Copies by `deepcopy` and pickles of the
    optimizer carry the protection, and the model with it; its `state_dict` is untouched.

    Costs, of each masked weight and one after another: a pass over gradient and weight, with a byte a weight of memory.
    What masked layers hold under their masks is zero, unless it is retained: these zeros are written, not stored. They
    are looked for where the weight has changed in place since the last step, which waits on CUDA (never while a graph
    is captured). Retained or frozen values, and all others that are not zero, are copied with their weight from the
    beginning of a step to its end.

    In a compiled step the hooks run between graphs. A CUDA graph of a step keeps the masks it was captured with.
    A term of the loss that reads the weight of a masked layer itself gives gradients under the mask until the step
    begins, which clipping sees: read it through `mask_gradient`.

    Args:
        optimizer: any, whatever its options; `differentiable` too.
        model: what has the masked layers and frozen parameters; it may get them later. Frozen parameters of the
            optimizer that are not the model's are kept as well.

    Raises:
        TypeError: not an optimizer, or not a module.
        ValueError: the optimizer has no parameter of the model. From `step`: a mask has another shape than its
            weight, or the weight of a masked layer is computed by a parametrization.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if is_protected(optimizer, model):
        return optimizer
    held = {id(p) for p in _parameters(optimizer)}
    names = [id(p) for p in model.parameters()] + [id(weight_of(layer)) for _, layer in masked_layers(model)]
    if held.isdisjoint(names):
        raise ValueError(
            f"optimizer ({type(optimizer).__name__} of {len(held)} parameters) has no parameter of model "
            f"({type(model).__name__}): it was made for another model, or for parameters that have been replaced since"
        )
    protection = getattr(optimizer, PROTECTION, None)
    if protection is None:
        protection = _Protection()
        attributes: Any = optimizer
        setattr(attributes, PROTECTION, protection)
        optimizer.register_step_pre_hook(protection.before)
        optimizer.register_step_post_hook(protection.after)
        # Optimizers are copied and pickled without their hooks. A cycle would keep the state in memory.
        attributes.__reduce_ex__ = functools.partial(_reduce, weakref.ref(optimizer))
    protection.models.append(model)
    return optimizer


def is_protected(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether `protect(optimizer, model)` was called."""
    protection = getattr(optimizer, PROTECTION, None)
    return protection is not None and any(model is other for other in protection.models)


@dataclass(frozen=True, eq=False)
class _Guarded:
    """A parameter of which a step moves only what is active."""

    parameter: Tensor
    mask: Mask  # on the parameter's device
    zeros: bool  # what is under the mask should be zero: masked layers have it alone, and none retains
    differentiable: bool

    def active(self) -> Tensor:
        """Bool, of the part of the parameter that is here."""
        return local_part(self.mask.dense(), self.parameter)


@dataclass(frozen=True, eq=False)
class _Held:
    """What is put back after a step: the parameter as it was before, or None for zeros under the mask."""

    guarded: _Guarded
    before: Tensor | None

    def put_back(self) -> None:
        guarded = self.guarded
        with torch.set_grad_enabled(guarded.differentiable):
            active = guarded.active()
            if guarded.differentiable:
                assert self.before is not None
                guarded.parameter.copy_(torch.where(active, guarded.parameter, self.before))
                return
            here = local(guarded.parameter)
            if self.before is None:
                _zero(here, active)
            else:
                torch.where(active, here, self.before, out=here)


class _Protection:
    """The hooks around the steps of one optimizer."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self._steps: list[list[_Held]] = []  # a step may call another, as that of a subclass does
        self._zeroed: dict[Tensor, tuple[int, Mask]] = {}  # version of a weight whose zeros were put back

    @outside_of_graphs
    def before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        guarded = _guarded(optimizer, self.models)
        for one in guarded:
            _mask_gradient(one)
        held = [_Held(one, self._copied(one)) for one in guarded]
        self._steps.append(held)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None
        closure = self._closure(closure, held)
        return (
            (args, {**kwargs, "closure": closure}) if "closure" in kwargs else ((args[0], closure, *args[2:]), kwargs)
        )

    @outside_of_graphs
    def after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held = self._steps.pop()
        for one in held:
            one.put_back()
        self._zeroed = {
            one.guarded.parameter: (one.guarded.parameter._version, one.guarded.mask)
            for one in held
            if one.before is None
        }

    def _copied(self, one: _Guarded) -> Tensor | None:
        """What has to be kept of a parameter: all of it, or nothing where there are but zeros under the mask."""
        if one.differentiable:
            with torch.enable_grad():
                return one.parameter.clone()
        if one.zeros and self._has_zeros(one):
            return None
        return local(one.parameter.detach()).clone()

    def _has_zeros(self, one: _Guarded) -> bool:
        parameter = one.parameter
        if is_sharded(parameter) or parameter.is_inference():  # their changes are not counted
            return False
        version, mask = self._zeroed.get(parameter, (None, None))
        if version == parameter._version and mask is one.mask:
            return True
        if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        return not bool(torch.where(one.active(), 0, _bits(parameter)).any())  # -0.0 has a bit set

    def _closure(self, closure: Callable[[], Any], held: list[_Held]) -> Callable[[], Any]:
        @functools.wraps(closure)
        def masked_closure() -> Any:
            for one in held:
                one.put_back()  # the loss is that of weights that stay
            try:
                loss = closure()
            except BaseException:
                self._steps.remove(held)  # no hook will be called after the step
                raise
            for one in held:
                _mask_gradient(one.guarded)
            return loss

        return masked_closure


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _guarded(optimizer: torch.optim.Optimizer, models: Iterable[nn.Module]) -> list[_Guarded]:
    differentiable = {
        id(parameter): bool(group.get("differentiable", False))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [
        _Guarded(one.parameter, one.mask.to(one.parameter.device), one.zeros, differentiable[id(one.parameter)])
        for one in trained_parts(_parameters(optimizer), models)
        if not one.mask.known_full and not one.parameter.is_meta
    ]


def _mask_gradient(one: _Guarded) -> None:
    grad = one.parameter.grad
    if grad is None:
        return
    with torch.set_grad_enabled(one.differentiable):
        if one.differentiable or grad.layout is not torch.strided or 0 in grad.stride():  # none, or expanded
            one.parameter.grad = ops.masked(grad, one.mask)
        else:
            _zero(local(grad), one.active())  # in place: buckets and graphs know the gradient's memory


def _bits(t: Tensor) -> Tensor:
    return t.detach().view(_INTEGERS[t.element_size()])


def _zero(t: Tensor, active: Tensor) -> None:
    """Writes +0.0 where `active` is false, whatever is there: as integers, for which torch takes half of the time that
    `masked_fill_` takes."""
    _bits(t).bitwise_and_(active.view(torch.int8).neg())  # -1 has every bit


def _reduce(here: weakref.ref[Any], protocol: int) -> tuple[Any, ...]:
    optimizer: Any = here()
    models = getattr(optimizer, PROTECTION).models
    return _blank, (type(optimizer),), {"optimizer": optimizer.__getstate__(), "models": models}


def _blank(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """An optimizer that waits for what `_reduce` kept of another one."""
    optimizer: Any = kind.__new__(kind)
    optimizer.__setstate__ = functools.partial(_restore, optimizer)
    return optimizer


def _restore(optimizer: Any, state: dict[str, Any]) -> None:
    del optimizer.__setstate__  # the class's own again
    optimizer.__setstate__(state["optimizer"])
    for model in state["models"]:
        protect(optimizer, model)


__all__ = ["is_protected", "protect"]
