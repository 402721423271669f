"""`gathered_conv2d`: the convolution of channels that each image chooses, and its two gradients.

It is the convolution of `where(channels, input, 0)`, with `channels` as bits, int32 `[batch, words(in)]`, or
`[1, words(in)]` for the same of every image. The three ops are closed under differentiation: every gradient of one is
another of the three.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import Product, multilinear
from .masked_conv2d import Ints, image_like, output_size, size_of
from .vmap import vmap_samples


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


class GatheredConv2d(NamedTuple):
    """The three ops of one namespace, differentiable."""

    gathered_conv2d: Product
    gathered_conv2d_input_grad: Product
    gathered_conv2d_weight_grad: Product


def products(namespace: str) -> GatheredConv2d:
    """Makes a namespace's ops differentiable, once.

    Inputs in order, behind them stride, padding, dilation:
    (input, weight, bits, bias), (grad, weight, bits, input_size), (grad, input, bits, kernel_size).
    """
    forward = multilinear(
        namespace,
        "gathered_conv2d",
        {
            0: lambda v, grad: input_grad(grad, v[1], v[2], size_of(v[0]), *v[4:]),
            1: lambda v, grad: weight_grad(grad, v[0], v[2], size_of(v[1]), *v[4:]),
        },
        bias=3,
        channel=1,
    )
    input_grad = multilinear(
        namespace,
        "gathered_conv2d_input_grad",
        {
            0: lambda v, grad: forward(grad, v[1], v[2], None, *v[4:]),
            1: lambda v, grad: weight_grad(v[0], grad, v[2], size_of(v[1]), *v[4:]),
        },
    )
    weight_grad = multilinear(
        namespace,
        "gathered_conv2d_weight_grad",
        {
            0: lambda v, grad: forward(v[1], grad, v[2], None, *v[4:]),
            1: lambda v, grad: input_grad(v[0], grad, v[2], size_of(v[1]), *v[4:]),
        },
    )
    # Channels are each image's own: one call for each sample.
    for name in GatheredConv2d._fields:
        vmap_samples(namespace, name, -1)
    return GatheredConv2d(forward, input_grad, weight_grad)


gathered_conv2d, gathered_conv2d_input_grad, gathered_conv2d_weight_grad = products("maskfuse")
