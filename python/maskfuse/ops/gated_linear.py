"""`gated_linear`: y = x (w * sigmoid(scores))^T + b, and its gradients; those of weight and scores in one pass.

The gate is no product, so its derivative is not one of the other ops: a gradient that is differentiated again, and
code that is traced or transformed, takes the gate apart into sigmoid and `soft_masked_linear`, which are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .autograd import plain
from .soft_masked_linear import COMPILED, SoftMaskedLinear


@torch.library.register_fake("maskfuse::gated_linear_weight_grad")
def _(grad: Tensor, input: Tensor, weight: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    shape = (grad.shape[-1], input.shape[-1])
    return grad.new_empty(shape), grad.new_empty(shape)


Gated = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def product(namespace: str, soft: SoftMaskedLinear) -> Gated:
    """The function to call a namespace's op by, with its derivatives; it checks nothing."""
    ops = getattr(torch.ops, namespace)

    def forward(ctx: Any, input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight, scores)
        return ops.gated_linear(input, weight, scores, bias)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, scores = ctx.saved_tensors
        wants_input, wants_weight, wants_scores, wants_bias = ctx.needs_input_grad
        d_input = d_weight = d_scores = None
        if torch.is_grad_enabled():  # to be differentiated again
            gate = torch.sigmoid(scores)
            if wants_input:
                d_input = soft.soft_masked_linear_input_grad(grad, weight, gate)
            if wants_weight:
                d_weight = soft.soft_masked_linear_weight_grad(grad, input, gate)
            if wants_scores:
                d_scores = soft.soft_masked_linear_weight_grad(grad, input, weight) * (gate * (1 - gate))
        else:
            if wants_input:
                d_input = ops.gated_linear_input_grad(grad, weight, scores)
            if wants_weight or wants_scores:
                d_weight, d_scores = ops.gated_linear_weight_grad(grad, input, weight, scores)
        d_bias = grad.sum(tuple(range(grad.dim() - 1))) if wants_bias and grad.dim() > 1 else grad
        wanted = zip((d_input, d_weight, d_scores, d_bias), ctx.needs_input_grad, strict=True)
        return tuple(gradient if wants else None for gradient, wants in wanted)

    gated: Any = type(
        "gated_linear",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )

    def gated_linear(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None) -> Tensor:
        if not plain():
            return soft.soft_masked_linear(input, weight, torch.sigmoid(scores), bias)
        return gated.apply(input, weight, scores, bias)

    return gated_linear


gated_linear = product("maskfuse", COMPILED)
