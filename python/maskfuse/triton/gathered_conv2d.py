"""`gathered_conv2d`: the convolution of channels that each image chooses, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.mask import words
from ._conv2d import Under, outer_product, product
from ._geometry import Geometry, check_images
from ._launch import op
from ._operands import check_floating, check_shape
from .kernels.product import LIST_BLOCK, LIST_GROUP
from .mask import listed


def _chosen(op: str, bits: Tensor, images: int, channels: int, like: Tensor) -> Tensor:
    if bits.dtype != torch.int32 or bits.device != like.device:
        raise RuntimeError(f"{op}: bits must be int32 on {like.device}, got {bits.dtype} on {bits.device}")
    if bits.dim() != 2 or bits.shape[0] not in (1, images) or bits.shape[1] != words(channels):
        raise RuntimeError(
            f"{op}: bits must have shape [{images}, {words(channels)}] or [1, {words(channels)}], got"
            f" {list(bits.shape)}"
        )
    return bits.contiguous()


def _pixel_lists(chosen: Tensor, images: int, area: int, taps: int) -> Tensor:
    """For each 128 pixels of the result: the blocks (tap, 64 channels) of which any of their images has an active one.

    Made on the device, by plain PyTorch, of one count an image and block.
    """
    step = LIST_BLOCK // 32
    active = F.pad(chosen != 0, (0, -chosen.shape[1] % step)).unflatten(1, (-1, step)).any(2)
    blocks = active.shape[1]
    before = F.pad(active.expand(images, blocks).to(torch.int32).cumsum(0), (0, 0, 1, 0))
    first = torch.arange(0, images * area, LIST_GROUP, device=chosen.device)
    last = (first + LIST_GROUP - 1).clamp(max=images * area - 1)
    found = before[last // area + 1] > before[first // area]
    return listed(found.repeat(1, taps))


@op
def gathered_conv2d(
    input: Tensor,
    weight: Tensor,
    bits: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`F.conv2d(where(channels, input, 0), weight, bias, stride, padding, dilation)`, channels as bits of images."""
    name = "gathered_conv2d"
    check_floating(name, input=input, weight=weight, bias=bias)
    geometry = Geometry(stride, padding, dilation)
    size = check_images(name, input, weight.shape, geometry)
    if bias is not None:
        check_shape(name, "bias", bias, weight.shape[:1])
    chosen = _chosen(name, bits, input.shape[0], input.shape[1], input)
    area, taps = size[0] * size[1], weight.shape[2] * weight.shape[3]
    some = input.shape[0] * area > 0
    lists = _pixel_lists(chosen, input.shape[0], area, taps) if some else None
    under = Under(lists=lists, of_pixels=some, chosen=chosen)
    return product(input, weight, under, size, geometry, bias)


@op
def gathered_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    bits: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The adjoint of `gathered_conv2d` in its input: 0 in the channels that an image did not choose."""
    name = "gathered_conv2d_input_grad"
    check_floating(name, grad=grad, weight=weight)
    geometry = Geometry(stride, padding, dilation)
    check_images(name, grad, weight.shape, geometry, input_size)
    chosen = _chosen(name, bits, grad.shape[0], weight.shape[1], grad)
    return product(grad, weight, Under(chosen=chosen), input_size, geometry, backward=True)


@op
def gathered_conv2d_weight_grad(
    grad: Tensor,
    input: Tensor,
    bits: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The gradient of the weight, to which an image gives nothing in the channels that it did not choose."""
    name = "gathered_conv2d_weight_grad"
    check_floating(name, grad=grad, input=input)
    geometry = Geometry(stride, padding, dilation)
    shape = (grad.shape[1], input.shape[1], *kernel_size)
    check_images(name, grad, shape, geometry, input.shape[2:])
    chosen = _chosen(name, bits, input.shape[0], input.shape[1], grad)
    return outer_product(grad, input, Under(chosen=chosen), kernel_size, geometry)
