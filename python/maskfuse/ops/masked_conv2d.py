"""`masked_conv2d` with a binary mask: a convolution with `w where m else 0`, and its two gradients.

The three ops are closed under differentiation: every gradient of one is another of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._memory_format import memory_format_of
from .autograd import Product, multilinear, shape_of
from .vmap import vmap_samples

Ints = Sequence[int]


def output_size(size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """Height and width of a convolution's output, of [height, width] each."""
    return [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(len(kernel))]


def image_like(like: Tensor, shape: Ints) -> Tensor:
    """An uninitialised image in the memory format of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like))


@torch.library.register_fake("maskfuse::masked_conv2d_unrecorded")
@torch.library.register_fake("maskfuse::masked_conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    torch._check(
        input.shape[1] == weight.shape[1] * groups, lambda: f"input {input.shape} does not fit weight {weight.shape}"
    )
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return image_like(input, (input.shape[0], weight.shape[0], *size))


@torch.library.register_fake("maskfuse::masked_conv2d_input_grad")
def _(
    grad: Tensor,
    weight: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    return image_like(grad, (grad.shape[0], weight.shape[1] * groups, *input_size))


@torch.library.register_fake("maskfuse::masked_conv2d_weight_grad")
def _(
    grad: Tensor,
    input: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    return grad.new_empty((grad.shape[1], input.shape[1] // groups, *kernel_size))


def size_of(operand: Any) -> list[int]:
    """Height and width of a saved operand, or of its shape."""
    return list(shape_of(operand)[2:])


class MaskedConv2d(NamedTuple):
    """The three ops of one namespace, differentiable."""

    masked_conv2d: Product
    masked_conv2d_input_grad: Product
    masked_conv2d_weight_grad: Product


def differentiable(
    namespace: str, name: str, kept: str, told: Callable[[Any], Any]
) -> tuple[Product, Product, Product]:
    """Makes a convolution and its two gradients differentiable, once: op `name`, `name_input_grad`, `name_{kept}_grad`.

    `kept` is what there is of the weight. Inputs in order, geometry behind them: (input, kept, bits, plan, bias),
    (grad, kept, bits, plan, input_size), (grad, input, bits, plan, what `told` says of `kept` or its shape).
    """
    forward = multilinear(
        namespace,
        name,
        {
            0: lambda v, grad: input_grad(grad, v[1], v[2], v[3], size_of(v[0]), *v[5:]),
            1: lambda v, grad: kept_grad(grad, v[0], v[2], v[3], told(v[1]), *v[5:]),
        },
        bias=4,
        channel=1,
    )
    input_grad = multilinear(
        namespace,
        f"{name}_input_grad",
        {
            0: lambda v, grad: forward(grad, v[1], v[2], v[3], None, *v[5:]),
            1: lambda v, grad: kept_grad(v[0], grad, v[2], v[3], told(v[1]), *v[5:]),
        },
    )
    kept_grad = multilinear(
        namespace,
        f"{name}_{kept}_grad",
        {
            0: lambda v, grad: forward(v[1], grad, v[2], v[3], None, *v[5:]),
            1: lambda v, grad: input_grad(v[0], grad, v[2], v[3], size_of(v[1]), *v[5:]),
        },
    )
    vmap_samples(namespace, name, 0)
    vmap_samples(namespace, f"{name}_input_grad", 0)
    vmap_samples(namespace, f"{name}_{kept}_grad", -1)  # a sum over samples: one result each
    return forward, input_grad, kept_grad


def products(namespace: str) -> MaskedConv2d:
    """Makes a namespace's ops differentiable, once; geometry = (stride, padding, dilation, groups)."""
    return MaskedConv2d(*differentiable(namespace, "masked_conv2d", "weight", size_of))


masked_conv2d, masked_conv2d_input_grad, masked_conv2d_weight_grad = products("maskfuse")

# For callers that have seen that nothing is recorded, traced or transformed (`plain`).
masked_conv2d_unrecorded = torch.ops.maskfuse.masked_conv2d_unrecorded.default._op
