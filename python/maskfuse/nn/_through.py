"""The gradient of a gate that is not differentiable itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Through(torch.autograd.Function):
    """`value`, differentiated as `value + gate * (run - skip)` by the gate, and as it is by the value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, run: Tensor, skip: Tensor | None, gate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, run, skip, gate = inputs
        ctx.dtype = gate.dtype
        ctx.save_for_backward(run, *([] if skip is None else [skip]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run, *skip = ctx.saved_tensors
        product = grad.to(ctx.dtype) * (run - skip[0] if skip else run)
        return grad, None, None, product.flatten(1).sum(1).to(ctx.dtype) if product.dim() > 1 else product
