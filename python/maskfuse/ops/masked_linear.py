"""`masked_linear` with a binary mask: y = x (w where m else 0)^T + b, and its two gradients.

The three ops are closed under differentiation: every gradient of one is another of the three.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import Product, multilinear
from .vmap import vmap_rows


@torch.library.register_fake("maskfuse::masked_linear_unrecorded")
@torch.library.register_fake("maskfuse::masked_linear")
def _(input: Tensor, weight: Tensor, bits: Tensor, plan: list[Tensor], bias: Tensor | None) -> Tensor:
    torch._check(input.shape[-1] == weight.shape[1], lambda: f"input {input.shape} does not fit weight {weight.shape}")
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@torch.library.register_fake("maskfuse::masked_linear_input_grad")
def _(grad: Tensor, weight: Tensor, bits: Tensor, plan: list[Tensor]) -> Tensor:
    torch._check(grad.shape[-1] == weight.shape[0], lambda: f"grad {grad.shape} does not fit weight {weight.shape}")
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


@torch.library.register_fake("maskfuse::masked_linear_weight_grad")
def _(grad: Tensor, input: Tensor, bits: Tensor, plan: list[Tensor]) -> Tensor:
    return grad.new_empty((grad.shape[-1], input.shape[-1]))


class MaskedLinear(NamedTuple):
    """The three ops of one namespace, differentiable."""

    masked_linear: Product
    masked_linear_input_grad: Product
    masked_linear_weight_grad: Product


def products(namespace: str) -> MaskedLinear:
    """Makes a namespace's ops differentiable, once.

    Inputs in order: (input, weight, bits, plan, bias), (grad, weight, bits, plan), (grad, input, bits, plan).
    """
    forward = multilinear(
        namespace,
        "masked_linear",
        {
            0: lambda v, grad: input_grad(grad, v[1], v[2], v[3]),
            1: lambda v, grad: weight_grad(grad, v[0], v[2], v[3]),
        },
        bias=4,
    )
    input_grad = multilinear(
        namespace,
        "masked_linear_input_grad",
        {
            0: lambda v, grad: forward(grad, v[1], v[2], v[3], None),
            1: lambda v, grad: weight_grad(v[0], grad, v[2], v[3]),
        },
    )
    weight_grad = multilinear(
        namespace,
        "masked_linear_weight_grad",
        {
            0: lambda v, grad: forward(v[1], grad, v[2], v[3], None),
            1: lambda v, grad: input_grad(v[0], grad, v[2], v[3]),
        },
    )
    vmap_rows(namespace, "masked_linear", 0)
    vmap_rows(namespace, "masked_linear_input_grad", 0)
    vmap_rows(namespace, "masked_linear_weight_grad", -1)  # a sum over rows: one result a sample
    return MaskedLinear(forward, input_grad, weight_grad)


masked_linear, masked_linear_input_grad, masked_linear_weight_grad = products("maskfuse")

# For callers that have seen that nothing is recorded, traced or transformed (`plain`).
masked_linear_unrecorded = torch.ops.maskfuse.masked_linear_unrecorded.default._op
