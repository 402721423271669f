"""The hooks around an optimizer's steps that keep what is masked or frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._sharded import is_sharded, local, local_part
from .._traced import outside_of_graphs
from ..mask import Mask
from ..nn._trained import trained_parts

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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


class Protection:
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


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _guarded(optimizer: torch.optim.Optimizer, models: Iterable[nn.Module]) -> list[_Guarded]:
    differentiable = {
        id(parameter): bool(group.get("differentiable", False))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [
        _Guarded(one.parameter, one.mask.to(one.parameter.device), one.zeros, differentiable[id(one.parameter)])
        for one in trained_parts(parameters_of(optimizer), models)
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
