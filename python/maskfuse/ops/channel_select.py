"""`channel_select` by a mask a sample, and its adjoint."""

from __future__ import annotations

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


channel_select: Product = multilinear(
    "channel_select", {0: lambda v, grad: channel_select_input_grad(grad, v[1], v[2])}
)
channel_select_input_grad: Product = multilinear(
    "channel_select_input_grad", {0: lambda v, grad: channel_select(grad, v[1], v[2])}
)

vmap_trailing("channel_select")
vmap_trailing("channel_select_input_grad")
