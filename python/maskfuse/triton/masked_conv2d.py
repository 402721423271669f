"""`masked_conv2d` with a binary mask, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.masked_conv2d import output_size
from ._conv2d import Under, outer_product, product
from ._geometry import Geometry, check_images
from ._launch import op, plain_op
from ._operands import check_bits, check_floating, check_shape
from ._plan import Plan, conv2d_plan
from ._planner import cut_pixels, cut_weight
from .mask import by_taps


def _known(op: str, bits: Tensor, plan: list[Tensor], weight_shape: Sequence[int], like: Tensor) -> tuple[Tensor, Plan]:
    """The bits by taps, and the plan."""
    out, inp, height, width = weight_shape
    taps = height * width
    bits = check_bits(op, bits, out, inp * taps, like)
    found = conv2d_plan(op, plan, out, taps, inp)
    if taps == 1:
        return bits, found
    return by_taps(bits, inp * taps, taps) if found.by_taps is None else found.by_taps, found


@op
def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`F.conv2d(input, where(mask, weight, 0), bias, stride, padding, dilation, groups)`."""
    name = "masked_conv2d"
    check_floating(name, input=input, weight=weight, bias=bias)
    geometry = Geometry(stride, padding, dilation, groups)
    size = check_images(name, input, weight.shape, geometry)
    if bias is not None:
        check_shape(name, "bias", bias, weight.shape[:1])
    ordered, found = _known(name, bits, plan, weight.shape, input)
    # A tile of 128 channels of a group is one of all channels only where groups are whole tiles.
    lists = found.of_rows if groups == 1 or weight.shape[0] // groups % 128 == 0 else None
    return product(input, weight, Under(ordered, lists), size, geometry, bias)


@op
def masked_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The adjoint of `masked_conv2d` in its input, `input_size` being that one's height and width."""
    name = "masked_conv2d_input_grad"
    check_floating(name, grad=grad, weight=weight)
    geometry = Geometry(stride, padding, dilation, groups)
    check_images(name, grad, weight.shape, geometry, input_size)
    ordered, found = _known(name, bits, plan, weight.shape, grad)
    lists = found.of_channels if groups == 1 else None  # which mix the groups' rows
    return product(grad, weight, Under(ordered, lists), input_size, geometry, backward=True)


@op
def masked_conv2d_weight_grad(
    grad: Tensor,
    input: Tensor,
    bits: Tensor,
    plan: list[Tensor],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient of the weight, 0 where the mask is."""
    name = "masked_conv2d_weight_grad"
    check_floating(name, grad=grad, input=input)
    geometry = Geometry(stride, padding, dilation, groups)
    shape = (grad.shape[1], input.shape[1] // groups, *kernel_size)
    check_images(name, grad, shape, geometry, input.shape[2:])
    ordered, _ = _known(name, bits, plan, shape, grad)
    return outer_product(grad, input, Under(ordered), kernel_size, geometry)


@plain_op
def masked_conv2d_choice(
    direction: str,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    out_channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
    lists: bool,
    multiprocessors: int,
    capability: int,
) -> str:
    """The family of tiles, and the parts of the depth, by the functions that choose in a call."""
    images, channels, *size = input_size
    to = output_size(size, kernel_size, stride, padding, dilation)
    out, inp, taps = out_channels // groups, channels // groups, kernel_size[0] * kernel_size[1]
    pixels = images * to[0] * to[1]
    if direction == "weight_grad":
        return str(cut_weight(pixels, out, inp, taps, groups, dtype, multiprocessors))
    if direction == "forward":
        return str(cut_pixels(pixels, out, inp, taps, groups, dtype, multiprocessors))
    return str(cut_pixels(images * size[0] * size[1], inp, out, taps, groups, dtype, multiprocessors))
