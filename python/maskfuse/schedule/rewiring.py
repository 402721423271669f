"""`SET` and `RigL`: sparse from the beginning, and rewired as training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _processes
from .._processes import Group
from .._sharded import local
from ._layers import MaskedWeight, Pool, Selection
from ._rewiring import Annealing, Rewiring, kept_by_magnitude, kept_by_sign
from ._schedule import Optimizers
from .budget import Budget
from .dense_gradient import DenseGradients


class SET(Rewiring):
    """Sparse evolutionary training: the weights closest to zero are dropped, and as many grow at random.

    Masks are drawn at random in the constructor, unless the layers have as many active weights as the budget says
    already, as a loaded model has: then they keep their masks. Every `interval` steps before `end` the share
    `drop_fraction` of the active weights is dropped, the smallest positive and the largest negative ones, as many of
    each as their shares are (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", arXiv:1707.04780); zeros count as positive. As many weights are drawn
    from all that are masked then, the dropped ones among them; one that is drawn again stays as it was. So the number
    of active weights never changes.

    Dropped weights are set to zero, retained values under a mask too when it changes. Grown ones begin at zero, where
    the paper's begin at random. The optimizer's state of both is put back to that of a new weight, which is zero for
    moments; state that is not elementwise (Adafactor's factors, the history of L-BFGS) is left alone.

    Processes that train one model together all set the masks that the first one draws.

    Args:
        model: has masked or compact layers. Those that share a weight are masked alike.
        optimizer: of the model, or several; protected or not.
        density: active share of all selected weights together, more than 0, at most 1.
        end: steps of the optimizer after which masks stay as they are.
        interval: steps from one change to the next.
        drop_fraction: share of the active weights, 0..1.
        annealing: `"constant"`, or `"cosine"`: the share falls to 0 at `end`.
        budget: `"uniform"`: each layer has the same density; `"erk"`: Erdős-Rényi-Kernel (Evci et al. 2020), small
            layers a higher one; `"global"`: weights are drawn, dropped and grown among those of all layers, whose
            densities change; one may be left with none, and few layers come back from that. The total is exactly
            `round(density * weights)` with each of them (largest remainder, ties by index; a layer smaller than its
            share is full, and others get the rest).
        layers: names of layers, or a function of name and layer: which ones are masked; None for all.
        dense: the same, of those that stay dense; they count in the density, unlike layers that are not selected.
        generator: what is drawn from; None for torch's own, which a resumed training has to restore itself.
        process_group: of the processes that train the model together; None for the default one, if `torch.distributed`
            runs. A process that trains a model of its own needs a group of its own.

    Raises:
        TypeError: no model, no optimizer, or a number of steps that is no integer.
        ValueError: no masked layers, names that none has, numbers out of range, an optimizer of others' parameters, or
            dense layers that have more weights than the density allows.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        density: float,
        *,
        end: int,
        interval: int = 100,
        drop_fraction: float = 0.3,
        annealing: Annealing = "constant",
        budget: Budget = "erk",
        layers: Selection | None = None,
        dense: Selection = (),
        generator: torch.Generator | None = None,
        process_group: Group = None,
    ) -> None:
        about = interval, end, drop_fraction, annealing, budget, layers, dense, generator, process_group
        super().__init__(model, optimizer, density, *about)

    def _update(self, step: int) -> bool:
        return self._due(step) and self._rewire(step, kept_by_sign, lambda pool, numel: self._random(numel))


class RigL(Rewiring):
    """The smallest weights are dropped, and those grow whose gradient is the largest.

    Masks are drawn at random in the constructor, unless the layers have as many active weights as the budget says
    already, as a loaded model has: then they keep their masks. Every `interval` steps before `end` the share
    `drop_fraction / 2 * (1 + cos(pi * step / end))` of the active weights is dropped, the smallest ones, and of all
    that are masked then as many grow, those with the largest gradients; ties by index (Evci et al. 2020, "Rigging the
    Lottery: Making All Tickets Winners", arXiv:1911.11134, algorithm 1). A dropped weight that is chosen again stays as
    it was. So the number of active weights never changes.

    Masked layers give masked weights a gradient of zero, so the steps that change masks need another one. Run the
    model in `with rigl.dense_gradient():`, which records it then and does nothing otherwise::

        with rigl.dense_gradient():
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        rigl.step()

    Unlike the paper's, a step that changes masks also trains the weights. A step whose dense gradient is not finite,
    as those that `GradScaler` skips, changes nothing, and the next one does in its place.

    Dropped weights are set to zero, retained values under a mask too when it changes. Grown ones begin at zero, and the
    optimizer's state of both is put back to that of a new weight, which is zero for moments; state that is not
    elementwise (Adafactor's factors, the history of L-BFGS) is left alone.

    Of processes that train one model together the dense gradient is summed, and all set the masks of the first one.

    Args:
        model: has masked or compact layers. Those that share a weight are masked alike.
        optimizer: of the model, or several; protected or not.
        density: active share of all selected weights together, more than 0, at most 1.
        end: steps of the optimizer after which masks stay as they are; three quarters of the training in the paper.
        interval: steps from one change to the next.
        drop_fraction: share of the active weights at the beginning, 0..1.
        annealing: `"cosine"`, or `"constant"`: the share stays `drop_fraction`.
        budget: `"uniform"`: each layer has the same density; `"erk"`: Erdős-Rényi-Kernel (Evci et al. 2020), small
            layers a higher one; `"global"`: weights are drawn, dropped and grown among those of all layers, whose
            densities change; one may be left with none, and few layers come back from that. The total is exactly
            `round(density * weights)` with each of them (largest remainder, ties by index; a layer smaller than its
            share is full, and others get the rest).
        layers: names of layers, or a function of name and layer: which ones are masked; None for all.
        dense: the same, of those that stay dense; they count in the density, unlike layers that are not selected.
        generator: what the first masks are drawn from; None for torch's own.
        process_group: of the processes that train the model together; None for the default one, if `torch.distributed`
            runs. A process that trains a model of its own needs a group of its own.

    Raises:
        TypeError: no model, no optimizer, or a number of steps that is no integer.
        ValueError: no masked layers, names that none has, numbers out of range, an optimizer of others' parameters, or
            dense layers that have more weights than the density allows.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        density: float,
        *,
        end: int,
        interval: int = 100,
        drop_fraction: float = 0.3,
        annealing: Annealing = "cosine",
        budget: Budget = "erk",
        layers: Selection | None = None,
        dense: Selection = (),
        generator: torch.Generator | None = None,
        process_group: Group = None,
    ) -> None:
        about = interval, end, drop_fraction, annealing, budget, layers, dense, generator, process_group
        super().__init__(model, optimizer, density, *about)
        self._waiting = False  # a change waits for a gradient that is finite
        self._recorded: DenseGradients | None = None

    @property
    def needs_dense_gradient(self) -> bool:
        """Whether the next `step` changes masks, for which forward passes until then must run in `dense_gradient`."""
        return self._changes(self._step + 1)

    @contextmanager
    def dense_gradient(self) -> Iterator[None]:
        """Records dense gradients of what runs in it, where the next `step` needs them; else it does nothing.

        Forward hooks keep each layer's input, and as the gradient of its output arrives in a backward pass, in the
        context or after it, multiply both by torch's plain product: `dy.T @ x`, or a convolution's, in float32
        (float64 for float64). The layers' own outputs and gradients stay what they are, so clipping and the optimizer
        see gradients that are zero under the mask. Sums over all backward passes until `step`, which drops them. What
        `torch.compile` has compiled runs uncompiled. Costs a dense product for each layer, with memory for its result
        until `step`, and for the input until backward.
        """
        if not self.needs_dense_gradient:
            yield
            return
        if self._recorded is None:
            self._recorded = DenseGradients()
        with self._recorded.recording([(one.name, layer) for one in self._rest for layer in one.layers]):
            yield

    def step(self) -> bool:
        """Counts a step of the optimizer, and changes masks where it is time; returns whether a mask changed.

        Raises:
            RuntimeError: as `CubicSchedule.step`, or the dense gradient is needed and was not recorded.
            ValueError: a weight is NaN.
        """
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on from here, after a `step` and before the next forward pass."""
        return super().state_dict() | {"waiting": self._waiting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken. Masks are the model's affair, and come with its `state_dict`.

        Args:
            state_dict: what `state_dict()` gave.

        Raises:
            TypeError: it has no number of steps.
            ValueError: it is another schedule's, of other layers, or one of the two has no generator.
        """
        super().load_state_dict(state_dict)
        self._waiting = bool(state_dict["waiting"])
        self._recorded = None

    def _changes(self, step: int) -> bool:
        return self._due(step) or (self._waiting and step < self.end)

    def _update(self, step: int) -> bool:
        if not self._changes(step):
            return False
        gradients = {one.name: self._dense_gradient_of(one) for one in self._rest}
        self._recorded = None
        self._reduce(gradients)
        self._waiting = not all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        if self._waiting:
            return False

        def gain(pool: Pool, numel: int) -> Tensor:
            return pool.join(gradients[member.name].abs() for member in pool.members)

        return self._rewire(step, kept_by_magnitude, gain)

    def _dense_gradient_of(self, one: MaskedWeight) -> Tensor:
        sums = {} if self._recorded is None else self._recorded.sums
        weight = one.weight
        if one.name in sums:
            return sums[one.name].to(weight.device)
        # A layer that took no part has none. One with a gradient of its own did, behind our back.
        if not sums or (weight.grad is not None and bool(local(weight.grad).any())):
            raise RuntimeError(
                f"step {self._step + 1} of RigL changes masks and needs the dense gradient of layer {one.name!r}, "
                "which was not recorded: run the forward pass in `with rigl.dense_gradient():`, then backward"
            )
        return torch.zeros(one.mask.shape, device=weight.device)

    def _reduce(self, gradients: dict[str, Tensor]) -> None:
        if _processes.count(self.process_group) > 1:
            for gradient in gradients.values():
                torch.distributed.all_reduce(gradient, group=self.process_group)
