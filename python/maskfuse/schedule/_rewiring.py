"""What `SET` and `RigL` have in common: masks of a fixed size, drawn first and rewired later."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._mask.patterns import largest
from .._processes import Group
from ._layers import Pool, Selection
from ._schedule import Optimizers, Schedule, check_count
from .budget import Budget, apportion, proportions

Annealing = Literal["cosine", "constant"]


class Rewiring(Schedule):
    """Drops some active weights every `interval` steps, and grows as many others."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        density: float,
        interval: int,
        end: int,
        drop_fraction: float,
        annealing: Annealing,
        budget: Budget,
        layers: Selection | None,
        dense: Selection,
        generator: torch.Generator | None,
        process_group: Group,
    ) -> None:
        super().__init__(model, optimizer, layers, dense, budget, interval, end, process_group)
        check_count("end", end, 1)
        count = self._count(self._check_density(density))
        if not 0.0 <= drop_fraction <= 1.0:
            raise ValueError(f"drop_fraction must be in 0..1, got {drop_fraction}")
        if annealing not in ("cosine", "constant"):
            raise ValueError(f"annealing must be cosine or constant, got {annealing!r}")
        self.drop_fraction = float(drop_fraction)
        self.annealing = annealing
        self.generator = generator
        limits = [sum(m.numel for m in pool.members) for pool in self._pools]
        shares = [1] if budget == "global" else proportions([m.mask.shape for m in self._rest], budget)
        self._counts = apportion(count, shares, limits)
        for pool, budgeted, numel in zip(self._pools, self._counts, limits, strict=True):
            drawn = pool.active != budgeted
            # Masks that stay are set too: of several processes all take those of the first.
            kept = pool.join(member.mask.dense() for member in pool.members)
            self._set(pool, largest(self._random(numel), budgeted) if drawn else kept)
        self._seen = self._versions()

    def drop_fraction_at(self, step: int) -> float:
        """Share of the active weights that is dropped after `step` steps of the optimizer, 0..1.

        `drop_fraction` with constant annealing, else `drop_fraction / 2 * (1 + cos(pi * step / end))` (Evci et al.
        2020, section 3), which stays 0 past `end`.

        Args:
            step: steps of the optimizer.
        """
        if self.annealing == "constant":
            return self.drop_fraction
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * min(step / self.end, 1.0)))

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on from here, the generator's state with it."""
        return super().state_dict() | {"generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken. Masks are the model's affair, and come with its `state_dict`.

        Args:
            state_dict: what `state_dict()` gave.

        Raises:
            TypeError: it has no number of steps.
            ValueError: it is another schedule's, of other layers, or one of the two has no generator.
        """
        saved = state_dict.get("generator")
        if (saved is None) != (self.generator is None):
            raise ValueError(
                f"state_dict must be of a schedule with{'out' if self.generator is None else ''} a generator"
            )
        super().load_state_dict(state_dict)
        if self.generator is not None and saved is not None:
            self.generator.set_state(saved.cpu())

    def _due(self, step: int) -> bool:
        return step % self.interval == 0 and step < self.end

    def _random(self, numel: int) -> Tensor:
        device = torch.device("cpu") if self.generator is None else self.generator.device
        return torch.rand(numel, generator=self.generator, device=device, dtype=torch.float64)

    def _rewire(
        self,
        step: int,
        kept: Callable[[Pool, Tensor, int], Tensor],
        gain: Callable[[Pool, int], Tensor],
    ) -> bool:
        """Drops and grows. `kept` tells of a pool, its magnitudes and how many to drop which weights stay, and `gain`
        of a pool and its size what growing each weight is worth, at least 0."""
        masks = []
        for pool, count in zip(self._pools, self._counts, strict=True):
            magnitude = pool.join(member.magnitude() for member in pool.members)
            active = int((magnitude >= 0).sum())
            # Of a mask that was set by hand since, as many go as there are too many.
            drop = max(round(self.drop_fraction_at(step) * active), active - count)
            stays = kept(pool, magnitude, drop)
            room = torch.where(stays, -1.0, gain(pool, stays.numel()).to(stays.device))
            masks.append(stays | largest(room, count - int(stays.sum())))
        return self._set_all(masks)


def kept_by_magnitude(pool: Pool, magnitude: Tensor, drop: int) -> Tensor:
    return largest(magnitude, int((magnitude >= 0).sum()) - drop)


def kept_by_sign(pool: Pool, magnitude: Tensor, drop: int) -> Tensor:
    negative = pool.join(member.in_full() < 0 for member in pool.members)
    sides = [(magnitude >= 0) & ~negative, (magnitude >= 0) & negative]
    numbers = [int(side.sum()) for side in sides]
    kept = torch.zeros_like(negative)
    for side, number, dropped in zip(sides, numbers, apportion(drop, numbers, numbers), strict=True):
        kept |= largest(torch.where(side, magnitude, -1.0), number - dropped)
    return kept
