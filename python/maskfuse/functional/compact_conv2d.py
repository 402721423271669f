"""`compact_conv2d`: a convolution of whose weight there are the active values alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .. import ops, reference
from ..backends import choose, extend
from ..mask import Mask
from . import _backends, _channel_masks, _check
from ._conv import Geometry, Pair, convolve
from .active_weights import check_values, expand_active
from .compact_linear import stand_in


def _kernels(images: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, geometry: Geometry) -> Tensor:
    plan = mask.plan if geometry.groups == 1 or images.is_cuda else []  # as `masked_conv2d` takes it
    if mask.known_full:
        return F.conv2d(images, values.reshape(mask.shape), bias, *geometry)
    return ops.compact_conv2d(images, values, mask.bits, plan, bias, *geometry, list(mask.shape))


def _triton(images: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, geometry: Geometry) -> Tensor:
    lists = mask.block_lists
    if mask.known_full:
        return F.conv2d(images, values.reshape(mask.shape), bias, *geometry)
    return _backends.triton.compact_conv2d(images, values, mask.bits, lists, bias, *geometry, list(mask.shape))


def _reference(images: Tensor, values: Tensor, mask: Mask, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return F.conv2d(images, reference.expand_active(values, mask), bias, *geometry)


extend("cpu", {"compact_conv2d": _kernels})
extend("cuda", {"compact_conv2d": _kernels})
extend("triton", {"compact_conv2d": _triton})
extend("reference", {"compact_conv2d": _reference})


def compact_conv2d(
    input: Tensor,
    values: Tensor,
    mask: Mask,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    channels: Tensor | None = None,
) -> Tensor:
    """`masked_conv2d` of `expand_active(values, mask)`, of which nothing of the weight's size is kept for backward.

    As `compact_linear`: each pass makes the weight and drops it, and the gradient of `values` is that of the active
    weights alone.

    Args:
        input: `[batch, in, height, width]` or `[in, height, width]`, any strides, float32, float64, bfloat16 or
            float16. channels_last in gives channels_last out.
        values: `[mask.active]`, the active weights row after row, the input's dtype and device.
        mask: `[out, in / groups, kernel_height, kernel_width]`, on that device.
        bias: `[out]`, the input's dtype and device, or None.
        stride, padding, dilation: one integer, or those of height and width; `padding` may be `"same"` or `"valid"`.
        groups: parts that input and output channels are cut into.
        channels: bool `[batch, in]`, or `[in]`: input channels that take part, or None for all. The input is zeroed
            where it is false.

    Returns:
        `[batch, out, out_height, out_width]`, or without `batch`, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, dtypes that differ, padding of another kind, or no `Mask`.
        ValueError: shapes, a number of values, devices or a geometry that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _check.floating(input, "input")
    check_values(values, mask, 4)
    input, values, bias = _check.autocast(input, values, bias)
    run = choose("compact_conv2d", input.device).ops["compact_conv2d"]
    # A weight without channels has no values, and runs nowhere but in torch.
    weight = stand_in(values, mask) if mask.numel else expand_active(values, mask)

    def of_images(images: Tensor, geometry: Geometry) -> Tensor:
        if channels is not None:
            _channel_masks.check(channels, input, input.shape[:-2])
            images = _channel_masks.zeroed(images, channels, 2)
        return run(images, values, mask, bias, geometry)

    return convolve(of_images, input, weight, bias, stride, padding, dilation, groups)
