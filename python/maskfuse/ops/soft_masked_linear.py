"""`masked_linear` with a real-valued mask: y = x (w * m)^T + b, and its gradients, the mask's among them.

Weight and mask enter alike, so one op gives both of their gradients: (grad^T x) * the other factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import Product, multilinear
from .vmap import vmap_rows


@torch.library.register_fake("maskfuse::gated_linear")
@torch.library.register_fake("maskfuse::soft_masked_linear")
def _(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    torch._check(input.shape[-1] == weight.shape[1], lambda: f"input {input.shape} does not fit weight {weight.shape}")
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@torch.library.register_fake("maskfuse::gated_linear_input_grad")
@torch.library.register_fake("maskfuse::soft_masked_linear_input_grad")
def _(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    torch._check(grad.shape[-1] == weight.shape[0], lambda: f"grad {grad.shape} does not fit weight {weight.shape}")
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


@torch.library.register_fake("maskfuse::soft_masked_linear_weight_grad")
def _(grad: Tensor, input: Tensor, factor: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[-1], input.shape[-1]))


class SoftMaskedLinear(NamedTuple):
    """The three ops of one namespace, differentiable."""

    soft_masked_linear: Product
    soft_masked_linear_input_grad: Product
    soft_masked_linear_weight_grad: Product


def products(namespace: str) -> SoftMaskedLinear:
    """Makes a namespace's ops differentiable, once.

    Inputs in order: (input, weight, mask, bias), (grad, weight, mask), (grad, input, factor).
    """
    forward = multilinear(
        namespace,
        "soft_masked_linear",
        {
            0: lambda v, grad: input_grad(grad, v[1], v[2]),
            1: lambda v, grad: weight_grad(grad, v[0], v[2]),
            2: lambda v, grad: weight_grad(grad, v[0], v[1]),
        },
        bias=3,
    )
    input_grad = multilinear(
        namespace,
        "soft_masked_linear_input_grad",
        {
            0: lambda v, grad: forward(grad, v[1], v[2], None),
            1: lambda v, grad: weight_grad(v[0], grad, v[2]),
            2: lambda v, grad: weight_grad(v[0], grad, v[1]),
        },
    )
    weight_grad = multilinear(
        namespace,
        "soft_masked_linear_weight_grad",
        {
            0: lambda v, grad: forward(v[1], grad, v[2], None),
            1: lambda v, grad: input_grad(v[0], grad, v[2]),
            2: lambda v, grad: weight_grad(v[0], v[1], grad),
        },
    )
    vmap_rows(namespace, "soft_masked_linear", 0)
    vmap_rows(namespace, "soft_masked_linear_input_grad", 0)
    vmap_rows(namespace, "soft_masked_linear_weight_grad", -1)
    return SoftMaskedLinear(forward, input_grad, weight_grad)


COMPILED = products("maskfuse")
soft_masked_linear, soft_masked_linear_input_grad, soft_masked_linear_weight_grad = COMPILED
