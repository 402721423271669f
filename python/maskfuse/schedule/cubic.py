"""`CubicSchedule`: gradual pruning by magnitude."""

from __future__ import annotations

from torch import nn

from .._mask.patterns import largest
from .._processes import Group
from ._layers import Selection
from ._schedule import Optimizers, Schedule, check_count
from .budget import Budget, apportion, proportions


class CubicSchedule(Schedule):
    """Masks the smallest weights, more and more of them: fast at first, slowly at the end.

    After step `t` of the optimizer the density is `density + (initial_density - density) * (1 - p) ** 3`, where
    `p = (t - begin) / (end - begin)` (Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning
    for model compression", arXiv:1710.01878, equation 1). Masks change at `begin` (if it is not 0), every `interval`
    steps from there, and at `end`, when the final density is reached exactly; before and after that they stay as they
    are. The largest of the weights that are active stay active, ties by index.

    A masked weight is zero and stays masked, so layers whose masks leave less than their share keep these, and others
    get the rest. With `retain` values under the mask are kept (`set_mask(mask, retain=True)`), and come back where
    active ones have become smaller than they; protect the optimizer then, if it has weight decay.

    The optimizer's state of a weight whose mask bit changes is put back to that of a new weight, which is zero for
    moments; so momentum does not move what was just masked. State that is not elementwise (Adafactor's factors, the
    history of L-BFGS) is left alone.

    Args:
        model: has masked or compact layers. Those that share a weight are masked alike.
        optimizer: of the model, or several; protected or not.
        density: active share of all selected weights together at the end, more than 0, at most 1.
        initial_density: the share at `begin`, at least `density`.
        begin, end: steps of the optimizer, `0 <= begin < end`.
        interval: steps from one change to the next.
        budget: `"uniform"`: each layer has the same density; `"erk"`: Erdős-Rényi-Kernel (Evci et al. 2020), small
            layers a higher one; `"global"`: the largest weights of all layers together, whichever layers they are in,
            which may leave one with none. The total is exactly `round(density * weights)` with each of them (largest
            remainder, ties by index; a layer smaller than its share is full, and others get the rest).
        layers: names of layers, or a function of name and layer: which ones are masked; None for all.
        dense: the same, of those that stay dense; they count in the density, unlike layers that are not selected.
        retain: keep values under the mask.
        process_group: of the processes that train the model together; None for the default one, if `torch.distributed`
            runs. A process that trains a model of its own needs a group of its own.

    Raises:
        TypeError: no model, no optimizer, or a number of steps that is no integer.
        ValueError: no masked layers, names that none has, densities or steps out of range, an optimizer of others'
            parameters, dense layers that have more weights than the density allows, or `retain` with compact layers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        density: float,
        *,
        end: int,
        begin: int = 0,
        interval: int = 100,
        initial_density: float = 1.0,
        budget: Budget = "uniform",
        layers: Selection | None = None,
        dense: Selection = (),
        retain: bool = False,
        process_group: Group = None,
    ) -> None:
        super().__init__(model, optimizer, layers, dense, budget, interval, end, process_group)
        check_count("begin", begin, 0)
        check_count("end", end, begin + 1)
        self.begin = begin
        self.final_density = self._check_density(density)
        self.initial_density = self._check_density(initial_density, "initial_density")
        if self.initial_density < self.final_density:
            raise ValueError(
                f"initial_density must be at least density, got {self.initial_density} and {self.final_density}"
            )
        self.retain = bool(retain)
        compact = [one.name for one in self._weights if one.compact]
        if self.retain and compact:
            raise ValueError(f"retain must be False for compact layers, which keep no values under a mask: {compact}")

    def density_at(self, step: int) -> float:
        """The density that is aimed at after `step` steps of the optimizer, 0..1; before `begin` the initial one.

        Args:
            step: steps of the optimizer.
        """
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.final_density + (self.initial_density - self.final_density) * (1 - progress) ** 3

    def _update(self, step: int) -> bool:
        if not self.begin <= step <= self.end or ((step - self.begin) % self.interval and step != self.end):
            return False
        # What is active bounds what will be, in each layer: rounding may not ask for a masked weight back.
        limits = [sum(m.numel for m in pool.members) if self.retain else pool.active for pool in self._pools]
        shares = [1] if self.budget == "global" else proportions([m.mask.shape for m in self._rest], self.budget)
        counts = apportion(self._count(self.density_at(step)), shares, limits)
        scores = (pool.join(m.magnitude(all_of_it=self.retain) for m in pool.members) for pool in self._pools)
        return self._set_all([largest(s, count) for s, count in zip(scores, counts, strict=True)], self.retain)
