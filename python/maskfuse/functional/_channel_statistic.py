"""One number for each channel of each sample, and a gate on it with a straight-through gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

STATISTICS = ("mean", "mean_abs")

# Elements that are read together, so that what is made of them on the way stays in the cache.
_PIECE = 1 << 17


def _trailing(t: Tensor) -> tuple[int, ...]:
    return tuple(range(2, t.dim()))


def _sums(part: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    return (part.abs() if kind == "mean_abs" else part).sum(_trailing(part), dtype=dtype)


def channel_statistic(input: Tensor, kind: str) -> Tensor:
    """Mean, or mean absolute value, of each channel of each sample; 0 for a channel without elements.

    Nothing of the input's size is made on the way: torch's CPU reductions widen half types, and its norm is slower
    than a sum of absolute values, so the input is read in pieces there.

    Args:
        input: `[N, C, ...]`, floating.
        kind: "mean" or "mean_abs".

    Returns:
        `[N, C]`, float64 for float64, else float32, in which it is summed.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if input.dim() == 2:
        value = input.to(dtype)
        return value.abs() if kind == "mean_abs" else value
    plane = math.prod(input.shape[2:])
    if torch.compiler.is_compiling() or input.device.type != "cpu":
        if kind == "mean":
            total = input.sum(_trailing(input), dtype=dtype)
        else:
            total = torch.linalg.vector_norm(input, 1, _trailing(input), dtype=dtype)
    elif kind == "mean" and input.dtype == dtype:
        total = _sums(input, kind, dtype)
    else:
        samples = max(1, _PIECE // max(1, input.shape[1] * plane))
        channels = input.shape[1] if samples > 1 else max(1, _PIECE // max(1, plane))
        rows = [[_sums(part, kind, dtype) for part in row.split(max(1, channels), 1)] for row in input.split(samples)]
        total = torch.cat([row[0] if len(row) == 1 else torch.cat(row, 1) for row in rows])
    return total / max(1, plane)


def keep_channels(input: Tensor, active: Tensor) -> Tensor:
    """The input with zeros in its inactive channels, whatever they hold, in its memory format.

    Args:
        input: `[N, C, ...]`, any dtype.
        active: bool `[N, C]` or `[C]`.
    """
    flags = active.reshape(*active.shape, *[1] * (input.dim() - 2))
    return torch.where(flags, input, input.new_zeros(()))


class _StraightThrough(torch.autograd.Function):
    """`where(active, input, 0)`, differentiated as `gate * input`: by the input with the gate at 1 and 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, gate: Tensor, active: Tensor | None) -> Tensor:
        return input.view_as(input) if active is None else keep_channels(input, active)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, gate, active = inputs
        ctx.dtype = gate.dtype
        ctx.all_active = active is None
        ctx.save_for_backward(input, *([] if active is None else [active]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, *active = ctx.saved_tensors  # looked at once: activation checkpointing gives them a single time
        of_input = grad if ctx.all_active else keep_channels(grad, active[0])
        product = grad.to(ctx.dtype) * input
        return of_input, product.sum(_trailing(product)) if product.dim() > 2 else product, None


def straight_through(input: Tensor, gate: Tensor, active: Tensor | None) -> Tensor:
    """The active channels, zeros elsewhere; `gate` `[N, C]` gets the gradient that it would get as a factor.

    Straight-through estimator (Bengio et al. 2013). `active`, bool `[N, C]`, None for all, is what the factor is
    replaced by in the forward pass and in the gradient of the input.
    """
    result: Tensor = _StraightThrough.apply(input, gate, active)
    return result
