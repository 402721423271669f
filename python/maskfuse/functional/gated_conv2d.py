"""`gated_conv2d`: a convolution whose weight is scaled by a learned gate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..backends import choose, extend
from . import _backends as _backends
from . import _check
from ._conv import Geometry, Pair, check_weight, convolve


def _kernels(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return F.conv2d(input, weight * torch.sigmoid(scores), bias, *geometry)


def _reference(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return reference.gated_conv2d(input, weight, scores, bias, *geometry)


extend("cpu", {"gated_conv2d": _kernels})
extend("cuda", {"gated_conv2d": _kernels})
extend("triton", {"gated_conv2d": _kernels})
extend("reference", {"gated_conv2d": _reference})


def gated_conv2d(
    input: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution with a gated weight: `F.conv2d(input, weight * sigmoid(scores), bias, ...)` (Savarese et al. 2020,
    "Winning the Lottery with Continuous Sparsification", with temperature 1).

    A gate hides nothing, so torch's own convolution runs on the gated weight, which is small beside the activations and
    kept for the backward pass.

    Args:
        input: `[batch, in, height, width]` or `[in, height, width]`, any strides, float32, float64, bfloat16 or
            float16.
        weight: `[out, in / groups, kernel_height, kernel_width]`, the input's dtype and device.
        scores: the weight's shape, dtype and device.
        bias: `[out]`, the input's dtype and device, or None.
        stride, padding, dilation: one integer, or those of height and width; `padding` may be `"same"` or `"valid"`.
        groups: parts that input and output channels are cut into.

    Returns:
        `[batch, out, out_height, out_width]`, or without `batch`, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, or dtypes that differ.
        ValueError: shapes, devices or a geometry that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _check.floating(input, "input")
    _check.floating(weight, "weight")
    _check.floating(scores, "scores")
    check_weight(weight)
    if scores.shape != weight.shape:
        raise ValueError(f"scores must have the shape of weight, {list(weight.shape)}, got {list(scores.shape)}")
    _check.same("scores", scores, "weight", weight)
    input, weight, scores, bias = _check.autocast(input, weight, scores, bias)
    run = choose("gated_conv2d", input.device).ops["gated_conv2d"]
    return convolve(
        lambda images, geometry: run(images, weight, scores, bias, geometry),
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
    )
