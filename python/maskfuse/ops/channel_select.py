"""`channel_select` by a mask a sample, and its adjoint."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import Product, multilinear
from .channel_gather import activation_like, vmap_trailing


@torch.library.register_fake("maskfuse::channel_select")
def _(input: Tensor, mask: Tensor, max_channels: int) -> Tensor:
    return activation_like(input, input.shape[0], max_channels)


@torch.library.register_fake("maskfuse::channel_select_input_grad")
def _(grad: Tensor, mask: Tensor, max_channels: int) -> Tensor:
    return activation_like(grad, grad.shape[0], mask.shape[1])


class ChannelSelect(NamedTuple):
    """The two ops of one namespace, differentiable."""

    channel_select: Product
    channel_select_input_grad: Product


def products(namespace: str) -> ChannelSelect:
    """Makes a namespace's ops differentiable, once."""
    select = multilinear(namespace, "channel_select", {0: lambda v, grad: input_grad(grad, v[1], v[2])})
    input_grad = multilinear(namespace, "channel_select_input_grad", {0: lambda v, grad: select(grad, v[1], v[2])})
    vmap_trailing(namespace, "channel_select")
    vmap_trailing(namespace, "channel_select_input_grad")
    return ChannelSelect(select, input_grad)


channel_select, channel_select_input_grad = products("maskfuse")
