"""`gathered_conv2d`: the convolution of channels that each image chooses, and its two gradients.

It is the convolution of `where(channels, input, 0)`, with `channels` as bits, int32 `[batch, words(in)]`, or
`[1, words(in)]` for the same of every image. The three ops are closed under differentiation: every gradient of one is
another of the three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import Product, multilinear, vmap_samples
from .masked_conv2d import Ints, image_like, output_size, size_of


@torch.library.register_fake("maskfuse::gathered_conv2d")
def _(
    input: Tensor, weight: Tensor, bits: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return image_like(input, (input.shape[0], weight.shape[0], *size))


@torch.library.register_fake("maskfuse::gathered_conv2d_input_grad")
def _(
    grad: Tensor, weight: Tensor, bits: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    return image_like(grad, (grad.shape[0], weight.shape[1], *input_size))


@torch.library.register_fake("maskfuse::gathered_conv2d_weight_grad")
def _(
    grad: Tensor, input: Tensor, bits: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    return grad.new_empty((grad.shape[1], input.shape[1], *kernel_size))


# Inputs in order, behind them stride, padding, dilation:
# (input, weight, bits, bias), (grad, weight, bits, input_size), (grad, input, bits, kernel_size).
gathered_conv2d: Product = multilinear(
    "gathered_conv2d",
    {
        0: lambda v, grad: gathered_conv2d_input_grad(grad, v[1], v[2], size_of(v[0]), *v[4:]),
        1: lambda v, grad: gathered_conv2d_weight_grad(grad, v[0], v[2], size_of(v[1]), *v[4:]),
    },
    bias=3,
    channel=1,
)
gathered_conv2d_input_grad: Product = multilinear(
    "gathered_conv2d_input_grad",
    {
        0: lambda v, grad: gathered_conv2d(grad, v[1], v[2], None, *v[4:]),
        1: lambda v, grad: gathered_conv2d_weight_grad(v[0], grad, v[2], size_of(v[1]), *v[4:]),
    },
)
gathered_conv2d_weight_grad: Product = multilinear(
    "gathered_conv2d_weight_grad",
    {
        0: lambda v, grad: gathered_conv2d(v[1], grad, v[2], None, *v[4:]),
        1: lambda v, grad: gathered_conv2d_input_grad(v[0], grad, v[2], size_of(v[1]), *v[4:]),
    },
)

# Channels are each image's own: one call for each sample.
for _name in ("gathered_conv2d", "gathered_conv2d_input_grad", "gathered_conv2d_weight_grad"):
    vmap_samples(_name, -1)
