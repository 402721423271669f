"""`expand_active` and `collect_active`: from a mask's active values to a weight and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from .._checks import describe
from .._mask.bits import bit_ops
from ..mask import Mask
from . import _backends, _check


def _ops(device: torch.device) -> Any:
    """What has the two ops for a device. Layers are made and moved whichever backend is asked for, as masks are: on the
    CPU the compiled ops run, on a GPU those that unpack the mask's bits there, or plain PyTorch."""
    namespace = bit_ops(device)
    if namespace is torch.ops.maskfuse:
        return ops
    return None if namespace is None else _backends.triton


def check_values(values: object, mask: Mask, dimensions: int | None = None) -> None:
    """Raises unless `values` are a mask's active values, and the mask has so many dimensions.

    Raises:
        TypeError: no `Mask`, or values of a dtype that no kernel takes.
        ValueError: another number of values, or another device.
    """
    _check.floating(values, "values")
    assert isinstance(values, Tensor)
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a maskfuse.Mask, got {describe(mask)}")
    if dimensions is not None and len(mask.shape) != dimensions:
        raise ValueError(f"mask must have {dimensions} dimensions, got {list(mask.shape)}")
    if values.is_meta:  # a mask keeps its bits while the values are not there yet
        return
    _check.same_device("mask", mask, "values", values)
    # Traced code would be compiled again for another number.
    if values.dim() != 1 or (not torch.compiler.is_compiling() and values.shape[0] != mask.active):
        raise ValueError(
            f"values must have shape {[mask.active]}, one for each active weight of mask {list(mask.shape)}, "
            f"got {describe(values)}"
        )


def expand_active(values: Tensor, mask: Mask) -> Tensor:
    """The weight that has these values where the mask is active, row after row, and zeros elsewhere.

    Differentiable: the gradient of `values` is `collect_active` of the weight's.

    Args:
        values: `[mask.active]`, float32, float64, bfloat16 or float16.
        mask: of any shape `[out, ...]`, on the device of the values.

    Returns:
        Of the mask's shape, the dtype of the values, contiguous.

    Raises:
        TypeError: no `Mask`, or another dtype.
        ValueError: another number of values, or another device.
    """
    check_values(values, mask)
    if values.is_meta:
        return values.new_empty(mask.shape)
    found = _ops(values.device)
    if found is None:
        return reference.expand_active(values, mask)
    return found.expand_active(values, mask.bits, list(mask.shape))


def collect_active(weight: Tensor, mask: Mask) -> Tensor:
    """The weight's active values, row after row.

    Differentiable: the gradient of `weight` is `expand_active` of that of the values.

    Args:
        weight: of the mask's shape and on its device, any strides, float32, float64, bfloat16 or float16.
        mask: binary.

    Returns:
        `[mask.active]`, the weight's dtype.

    Raises:
        TypeError: no `Mask`, or another dtype.
        ValueError: another shape or device.
    """
    _check.floating(weight, "weight")
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a maskfuse.Mask, got {describe(mask)}")
    _check.mask_of(mask, weight)
    if weight.is_meta:
        return weight.new_empty(mask.active)
    found = _ops(weight.device)
    if found is None:
        return reference.collect_active(weight, mask)
    return found.collect_active(weight, mask.bits, mask.active)
