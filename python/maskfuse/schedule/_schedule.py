"""What schedules have in common: counting steps, setting masks, optimizers' state, saving and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _processes
from .._processes import Group
from .._sharded import is_sharded, local, local_part
from ..mask import Mask
from ..nn._compact_masks import set_masks
from ..nn._optimizer_state import Optimizers, beginning, holds
from ._layers import MaskedWeight, Pool, Selection, masked_weights
from .budget import BUDGETS, Budget


class Schedule(ABC):
    """Masks of a model that change as it is trained; a base for `CubicSchedule`, `SET` and `RigL`.

    Call `step` once after each step of the optimizer. A mask that changes is set with `set_mask`, which makes its plan;
    the old mask and its plan are kept by nobody.

    Processes that train one model together step together. Each computes the masks, and all set those of the first one,
    one bit a weight sent when masks may change; so they are the same whatever each has drawn or loaded. The values of
    compact layers are others in number then, when a schedule is made too, and `DistributedDataParallel`, which has
    buffers for them, is to be made anew; around the old one the next backward pass averages nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        layers: Selection | None,
        dense: Selection,
        budget: Budget,
        interval: int,
        end: int,
        process_group: Group,
    ) -> None:
        if budget not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
        check_count("interval", interval, 1)
        self._weights = masked_weights(model, layers, dense)
        self._optimizers = _optimizers_of(self._weights, optimizer)
        self._rest = [one for one in self._weights if not one.dense]
        self._pools = [Pool(self._rest)] if budget == "global" else [Pool([one]) for one in self._rest]
        self.budget = budget
        self.interval = interval
        self.end = end
        self.process_group = process_group
        self._step = 0
        self._seen = self._versions()

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return self._step

    @property
    def active(self) -> dict[str, int]:
        """Number of active weights of each layer, by the layer's name; a shared weight has its first layer's."""
        return {one.name: one.mask.active for one in self._weights}

    @property
    def density(self) -> float:
        """Active share of the weights of all layers together, those that are kept dense among them."""
        return sum(self.active.values()) / self._numel

    def step(self) -> bool:
        """Counts a step of the optimizer, and changes masks where it is time; returns whether a mask changed.

        Raises:
            RuntimeError: the optimizer has not stepped since the last call (noticed on the CPU, where weights count
                their changes), though there are gradients, which are finite: those of a step that `GradScaler`
                skips are not. Or a layer is masked no more, in a model that was folded.
            ValueError: a weight is NaN.
        """
        for one in self._weights:
            one.check_masked()
        self._check_order()
        changed = self._update(self._step + 1)
        self._step += 1
        self._seen = self._versions()
        return changed

    @abstractmethod
    def _update(self, step: int) -> bool:
        """Changes masks where `step` is one to do so."""

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on from here, beside the model's and the optimizer's own; `torch.load` takes it with
        `weights_only`."""
        layers = {one.name: list(one.mask.shape) for one in self._weights}
        return {"schedule": type(self).__name__, "layers": layers, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken. Masks are the model's affair, and come with its `state_dict`.

        Args:
            state_dict: what `state_dict()` gave.

        Raises:
            TypeError: it has no number of steps.
            ValueError: it is another schedule's, or of other layers.
        """
        own = self.state_dict()
        for key in ("schedule", "layers"):
            if state_dict.get(key) != own[key]:
                raise ValueError(f"state_dict must be of {key} {own[key]}, got {state_dict.get(key)}")
        check_count("step of state_dict", state_dict.get("step"), 0)
        self._step = state_dict["step"]
        self._seen = self._versions()

    # -- for subclasses --------------------------------------------------------------------------------

    @property
    def _numel(self) -> int:
        return sum(one.numel for one in self._weights)

    def _count(self, density: float) -> int:
        """Active weights of the layers that are not kept dense, where those of all make up `density`."""
        return round(density * self._numel) - sum(one.numel for one in self._weights if one.dense)

    def _check_density(self, density: float, argument: str = "density") -> float:
        density = float(density)
        if not 0.0 < density <= 1.0:
            raise ValueError(f"{argument} must be more than 0 and at most 1, got {density}")
        if self._count(density) < 0:
            raise ValueError(
                f"{argument} must leave room for the layers that are kept dense: {density} of {self._numel} weights is "
                f"{-self._count(density)} less than these have"
            )
        return density

    def _set_all(self, masks: Sequence[Tensor], retain: bool = False) -> bool:
        """Sets the masks of all pools, which are known by now: a weight that is NaN leaves no half of them."""
        return any([self._set(pool, active, retain) for pool, active in zip(self._pools, masks, strict=True)])

    @torch.no_grad()
    def _set(self, pool: Pool, active: Tensor, retain: bool = False) -> bool:
        """Sets the masks of a pool: bool, flat. Grown weights are zero and begin without a history."""
        changed = False
        for one, flags in zip(pool.members, pool.split(active), strict=True):
            mask = Mask.from_dense(flags)
            if _processes.count(self.process_group) > 1:
                mask = Mask(_processes.first_ones(mask.bits, self.process_group), mask.shape)
                flags = mask.dense()
            if all(layer.mask == mask for layer in one.layers):
                continue
            changed = True
            weight = one.weight
            if one.compact:
                set_masks(one.compact, mask, [o for o in self._optimizers if holds(o, weight)])
                continue
            before = one.mask.dense()
            if not retain:
                local(weight).masked_fill_(local_part(flags & ~before, weight), 0)
            for layer in one.masked:
                layer.set_mask(mask, retain=retain)
            _forget(self._optimizers, weight, flags ^ before)
        return changed

    def _versions(self) -> dict[int, int]:
        """How often each weight was changed in place, of those that count: a CUDA graph that is replayed does not."""
        stepped = {id(p) for optimizer in self._optimizers for p in _parameters(optimizer)}
        weights = (one.weight for one in self._rest)
        return {
            id(w): w._version
            for w in weights
            if id(w) in stepped and not is_sharded(w) and w.is_cpu and not w.is_inference()
        }

    def _check_order(self) -> None:
        versions = self._versions()
        stuck = [w for w in (one.weight for one in self._rest) if w.grad is not None and id(w) in versions]
        if not stuck or any(versions[id(w)] != self._seen.get(id(w)) for w in stuck):
            return
        gradients = (p.grad for optimizer in self._optimizers for p in _parameters(optimizer) if p.grad is not None)
        if all(_finite(grad) for grad in gradients):
            raise RuntimeError(
                f"{type(self).__name__}.step must follow a step of the optimizer, and no weight has changed since the "
                "last one: call backward, optimizer.step and schedule.step in this order, each once"
            )


def check_count(name: str, value: object, least: int) -> None:
    """Raises where `value` is no integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _optimizers_of(weights: Iterable[MaskedWeight], optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    optimizers = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    for one in optimizers:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {type(one).__name__}")
    held = {id(p) for one in optimizers for p in _parameters(one)}
    if held.isdisjoint(id(one.weight) for one in weights):
        raise ValueError(
            f"optimizer ({', '.join(type(one).__name__ for one in optimizers)} of {len(held)} parameters) must have "
            "weights of the layers, and has none: it was made for another model, or for parameters since replaced"
        )
    return optimizers


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _finite(grad: Tensor) -> bool:
    values = grad.coalesce().values() if grad.is_sparse else local(grad)
    return bool(torch.isfinite(values).all())


def _forget(optimizers: Iterable[torch.optim.Optimizer], weight: Tensor, where: Tensor) -> None:
    """Puts the optimizers' state of single weights back to what a new weight has."""
    for optimizer in optimizers:
        state = optimizer.state.get(weight)
        if not state:
            continue
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                begins = beginning(optimizer, weight, name)
                local(value).masked_fill_(local_part(where.to(value.device), value), begins)
