"""Argument checks shared by the functions. Below this layer nothing is checked for its wording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._checks import describe
from .._mask.plans import plan_waits
from ..mask import Mask

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where it is on for their device, as torch does for F.linear."""
    device_type = next(t for t in tensors if t is not None).device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    castable = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(t.to(dtype) if t is not None and t.dtype in castable else t for t in tensors)


def floating(t: object, name: str) -> None:
    """Raises TypeError unless `t` is a tensor of a dtype that kernels exist for."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {describe(t)}")


def same(name: str, t: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors have one dtype and one device."""
    if t.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} must have one dtype, got {describe(t)} and {describe(other)}")
    same_device(name, t, other_name, other)


def same_device(name: str, t: Tensor | Mask, other_name: str, other: Tensor) -> None:
    """Raises unless both are on one device."""
    if t.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on one device, got {t.device} and {other.device}")


def linear_operands(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises unless input `[..., in]` and bias `[out]` fit weight `[out, in]` in shape, dtype and device."""
    same("input", input, "weight", weight)
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must have shape [..., {weight.shape[1]}] for weight {list(weight.shape)}, got {list(input.shape)}"
        )
    if bias is not None:
        floating(bias, "bias")
        same("bias", bias, "weight", weight)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape {[weight.shape[0]]}, got {describe(bias)}")


def of_one_call(dense: Tensor) -> Mask | Tensor:
    """`Mask.from_dense` for a call that makes its mask and drops it: without a plan where making one would wait. The
    reference, traced, takes the tensor as it is."""
    if backends.traced_plainly():
        return dense
    mask = Mask.from_dense(dense)
    return Mask(mask.bits, mask.shape, plan=[]) if plan_waits(mask.device) else mask


def mask_of(
    mask: Mask | Tensor,
    weight: Tensor,
    make: Callable[[Tensor], Mask | Tensor] = of_one_call,
    name: str = "weight",
) -> Mask | Tensor:
    """The mask of a weight as a `Mask` (binary), or what `make` makes of a bool tensor, or a floating tensor
    (real-valued). `name` is what errors call the weight.

    Values are not looked at but those of integers.

    Raises:
        TypeError: neither a Mask nor a tensor of bool, integers or the weight's dtype.
        ValueError: another shape or device than the weight's, or integers other than 0 and 1.
    """
    if not isinstance(mask, (Mask, Tensor)):
        raise TypeError(f"mask must be a maskfuse.Mask or a tensor, got {type(mask).__name__}")
    if mask.shape != weight.shape:
        hint = ""
        if name == "weight" and len(weight.shape) == 2 and tuple(mask.shape) == tuple(weight.shape)[::-1]:
            hint = "; weights are [out, in], this looks like [in, out]: pass mask.T"
        raise ValueError(f"mask must have the shape of {name}, {list(weight.shape)}, got {list(mask.shape)}{hint}")
    if isinstance(mask, Mask):
        if not weight.is_meta:  # a mask keeps its bits while the weight has no values yet
            same_device("mask", mask, name, weight)
        return mask
    same_device("mask", mask, name, weight)
    if mask.is_floating_point():
        if mask.dtype != weight.dtype:
            raise TypeError(
                f"a real-valued mask must have {name}'s dtype, got {describe(mask)} for {describe(weight)}; "
                "pass a bool tensor or a Mask for a binary mask"
            )
        return mask
    if mask.is_complex():
        raise TypeError(f"mask must be bool, 0/1 integers or floating, got {describe(mask)}")
    if mask.dtype != torch.bool:
        binary = ((mask == 0) | (mask == 1)).all()
        message = f"an integer mask must be 0 or 1 everywhere (mask is {describe(mask)})"
        if torch.compiler.is_compiling():
            torch._assert_async(binary, message)
        elif mask.device.type != "meta" and not bool(binary):
            raise ValueError(message)
        mask = mask.bool()
    return make(mask)
