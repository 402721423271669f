"""`Bypass`: a module that is run or skipped, by flag, by sample, by chance or by a learned gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_module, describe
from ..functional import _check
from ..ops.autograd import has_tangent
from ._numbers import number, positive
from ._samples import (
    check_active,
    check_samples,
    check_shape,
    outside,
    set_outside,
)
from ._skipping import Skipping
from ._through import Through

_SKIPPED = ("identity", "zeros")
_SCALES = ("eval", "train", "none")


class Bypass(Skipping):
    """Runs a module, or skips it: what is skipped is not computed.

    Who decides:

    - Nobody: the module is run while the attribute `active` is True, and skipped while it is False.
    - The caller: `bypass(input, active=...)` by a bool for all samples, or by a bool tensor `[N]`. Of `[N, ...]` the
      module then sees the active samples alone, in their order; the others are put around what it returns. Where none
      is active it is not called. This goes before everything below, unscaled.
    - Chance, with `p`: stochastic depth (Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382).
      In training a call skips the module with probability `p`, for the batch as a whole or for each sample. Expected
      values are kept by `scale`: with "eval", as in the paper, training gives the module's output or the skipped value,
      and eval mode `skipped + (1 - p) * (module - skipped)`; with "train", active samples give
      `skipped + (module - skipped) / (1 - p)`, and eval mode is the module; with "none" neither is scaled. The paper's
      residual branch is `x + bypass(x)` with "zeros"; a whole block `x + f(x)` with "identity" gives the same. Draws
      come from torch's generator of the CPU (`torch.manual_seed`) on every device, one number a batch or a sample, so
      nothing waits for a device.
    - A learned `gate`, a module from the input to a logit for each sample, `[N]` or `[N, 1]`. Samples with a positive
      logit are active, in training and eval mode. The logit's gradient is straight-through (Bengio et al. 2013,
      arXiv:1308.3432): that of `skipped + sigmoid(logit / temperature) * (module - skipped)`. For a skipped sample the
      module's output is not known, and its logit gets no gradient: a penalty on `sigmoid(bypass.gate(input))`, or on
      its distance from a target rate, keeps gates moving; or `dense_gradient`, with which the module is run on all
      samples while a gate learns in training mode, so that skipped ones teach it too.

    A skipped sample gets itself ("identity"), zeros of its shape ("zeros"), or what the module `skipped` makes of it.
    `skipped` as a module sees the skipped samples alone, but all where "train" scales or a gate learns from the
    difference. The module must return the shape of what it stands for. Where their dtypes differ, as under autocast,
    selected samples and skipped ones are put together in the wider one. A batch skipped by identity is the input
    itself, no copy. Gradients are exact: a skipped sample's goes to the input, or into `skipped`, and not to the
    module. Batch norms inside see active samples alone.

    Under `torch.compile` flags compile with `fullgraph=True`, once for each value, and so do eval mode with `p`, and
    `p=0`. Choices of samples, and draws, must be known to the host: they break the graph, the module is compiled behind
    the break, and `fullgraph=True`, `torch.export`, `torch.func.vmap` and CUDA graphs refuse them. On CUDA a gate is
    waited for, and so is a tensor `active`, unless it is on the CPU.

    In DistributedDataParallel a module that one process skips has parameters without a gradient there: give
    `find_unused_parameters=True`, or `dense_gradient`. A module whose parameters FSDP gathers must be skipped by all
    processes or by none: by flag, or by batch with the same seed on all of them.

    Args:
        module: what is run or skipped; one tensor in, one out.
        active: what the attribute `active` starts as; it is not saved in `state_dict`.
        p: probability of a skip in training, 0..1.
        per_sample: draw for each sample, not for the batch.
        scale: "eval", "train" or "none".
        gate: module from the input to logits; not with `p`.
        temperature: of the gate's sigmoid, positive; smaller is steeper.
        dense_gradient: run skipped samples too while a gate learns.
        skipped: "identity", "zeros" or a module.

    Returns, from a call:
        What the module returns, with skipped samples in their places, in the input's memory format where samples are
        chosen.

    Raises:
        TypeError: arguments of other types; an input that is no tensor, or a module or gate that returns none.
        ValueError: values out of range, options that do not go together, an `active` or logits that do not fit, or a
            module that returns another shape than what is skipped has.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        active: bool = True,
        p: float | None = None,
        per_sample: bool = False,
        scale: str = "eval",
        gate: nn.Module | None = None,
        temperature: float = 1.0,
        dense_gradient: bool = False,
        skipped: str | nn.Module = "identity",
    ) -> None:
        super().__init__()
        set_outside()
        check_module(module, "module")
        if p is not None:
            p = number(p, "p")
            if not 0 <= p <= 1:
                raise ValueError(f"p must be a probability, 0 to 1, got {p}")
        if gate is not None:
            check_module(gate, "gate")
            if p is not None:
                raise ValueError("p and gate cannot both decide: give one of them")
        if p is None and (per_sample or scale != "eval"):
            raise ValueError("per_sample and scale go with p")
        if gate is None and (dense_gradient or temperature != 1):
            raise ValueError("dense_gradient and temperature go with gate")
        if scale not in _SCALES:
            raise ValueError(f"scale must be one of {', '.join(_SCALES)}, got {scale!r}")
        if not isinstance(skipped, nn.Module) and skipped not in _SKIPPED:
            raise ValueError(f"skipped must be a module or one of {', '.join(_SKIPPED)}, got {skipped!r}")
        self.module = module
        self.active = active
        self.p = p
        self.per_sample = bool(per_sample)
        self.scale = scale
        self.gate = gate
        self.temperature = positive(temperature, "temperature")
        self.dense_gradient = bool(dense_gradient)
        self.skipped = skipped

    @property
    def active(self) -> bool:
        """Whether a call that does not say so runs the module, or what decides over it; set it to skip all."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"active must be a bool, got {describe(value)}")
        self._active = value

    def forward(self, input: Tensor, active: bool | Tensor | None = None) -> Tensor:
        """`input` `[N, ...]` through the module where it is active; for whole batches any shape will do.

        Args:
            input: `[N, ...]`, of a dtype that the module takes.
            active: bool, or bool tensor `[N]` on the input's device or the CPU; None leaves it to the layer.

        Returns:
            `[N, ...]`, what the module returns, with skipped samples in their places, in the wider dtype of the two.

        Raises:
            TypeError: `input` is no tensor, `active` neither a bool nor a bool tensor, or the module, or a gate,
                returns no tensor.
            ValueError: `active`, or a gate's logits, do not fit the input, or the module returns another shape than
                what is skipped has.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor, got {describe(input)}")
        if isinstance(active, Tensor):
            check_active(active, input)
            return self._select(input, active)
        if active is not None and not isinstance(active, bool):
            raise TypeError(f"active must be a bool or a bool tensor [N], got {describe(active)}")
        if active is False or (active is None and not self._active):
            return self._skip(input)
        if active is None and self.gate is not None:
            return self._by_gate(input, self.gate)
        if active is None and self.p is not None:
            return self._by_chance(input, self.p)
        return self._run(input)

    def _by_chance(self, input: Tensor, p: float) -> Tensor:
        if p == 0 or not self.training:
            if p == 0 or self.scale != "eval":
                return self._run(input)
            return self._skip(input) if p == 1 else self._scaled(self._run(input), self._around(input), 1 - p)
        factor = 1 / (1 - p) if self.scale == "train" and p < 1 else None
        if self.per_sample:
            check_samples(input)
            active = outside.draw(input.shape[0], p)
            if factor is None:
                return self._select(input, active)
            return self._select(input, active, lambda run, skip, index: self._scaled(run, skip, factor))
        if not outside.chance(p):
            return self._skip(input)
        return self._run(input) if factor is None else self._scaled(self._run(input), self._around(input), factor)

    def _by_gate(self, input: Tensor, gate: nn.Module) -> Tensor:
        check_samples(input)
        logits = gate(input)
        _check.floating(logits, "the gate's output")
        samples = input.shape[0]
        if list(logits.shape) not in ([samples], [samples, 1]):
            raise ValueError(
                f"the gate must return [{samples}] or [{samples}, 1] for input {describe(input)}, "
                f"got {describe(logits)}"
            )
        logits = logits.reshape(samples)
        active = logits.detach() > 0
        if not (torch.is_grad_enabled() and (logits.requires_grad or has_tangent(logits))):
            return self._select(input, active)
        soft = torch.sigmoid(logits / self.temperature)
        if self.dense_gradient and self.training:
            run, skip = self._run(input), self._around(input)
            if skip is not None:
                check_shape(run, skip, "skipped is")
            flags = active.reshape(samples, *[1] * (run.dim() - 1))
            value = torch.where(flags, run, run.new_zeros(()) if skip is None else skip)
            return Through.apply(value, run, skip, soft)

        def learn(run: Tensor, skip: Tensor | None, index: Tensor) -> Tensor:
            # Compiled code of torch 2.11 drops the gradient of a tensor that a Function is given twice.
            return Through.apply(run.view_as(run), run, skip, soft.index_select(0, index))

        return self._select(input, active, learn)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled modules may be the first of their process."""
        super().__setstate__(state)
        set_outside()

    def extra_repr(self) -> str:
        """Who decides, and what skipped samples get."""
        parts = [] if self._active else ["active=False"]
        if self.p is not None:
            parts.append(f"p={self.p:g}, per_sample={self.per_sample}, scale={self.scale}")
        if self.gate is not None:
            parts.append(f"temperature={self.temperature:g}, dense_gradient={self.dense_gradient}")
        if not isinstance(self.skipped, nn.Module):
            parts.append(f"skipped={self.skipped}")
        return ", ".join(parts)
