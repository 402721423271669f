"""What every op here asks of its operands. Messages are those of the compiled ops (csrc/torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.mask import words

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def as_rows(t: Tensor) -> Tensor:
    """`[..., columns]` as a matrix."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def of_rows(y: Tensor, like: Tensor) -> Tensor:
    """A matrix with the leading dimensions that `like` has."""
    return y if like.dim() == 2 else y.reshape(*like.shape[:-1], y.shape[1])


def check_floating(op: str, **operands: Tensor | None) -> None:
    """Raises unless all operands that are there have one floating dtype and one device."""
    first_name, first = next((name, t) for name, t in operands.items() if t is not None)
    if first.dtype not in _FLOATING:
        raise RuntimeError(f"{op}: {first_name} must be float32, float64, bfloat16 or float16, got {first.dtype}")
    for name, t in operands.items():
        if t is not None and t.dtype != first.dtype:
            raise RuntimeError(
                f"{op}: {first_name} and {name} must have the same dtype, got {first.dtype} and {t.dtype}"
            )
        if t is not None and t.device != first.device:
            raise RuntimeError(
                f"{op}: {first_name} and {name} must be on one device, got {first.device} and {t.device}"
            )


def check_shape(op: str, name: str, t: Tensor, shape: Sequence[int | torch.SymInt]) -> None:
    """Raises unless a tensor has this shape."""
    if list(t.shape) != list(shape):
        raise RuntimeError(f"{op}: {name} must have shape {list(shape)}, got {list(t.shape)}")


def check_fit(op: str, name: str, t: Tensor, size: int | torch.SymInt, weight: Tensor) -> None:
    """Raises unless the rows of `t` are as long as a side of the weight, which has two."""
    if weight.dim() != 2:
        raise RuntimeError(f"{op}: weight must have shape [out, in], got {list(weight.shape)}")
    if t.dim() == 0 or t.shape[-1] != size:
        raise RuntimeError(f"{op}: {name} {list(t.shape)} does not fit weight {list(weight.shape)}")


def check_bits(op: str, bits: Tensor, rows: int, columns: int, like: Tensor) -> Tensor:
    """The bits of a mask over rows x columns weights, contiguous; raises unless they are such."""
    if bits.dtype != torch.int32:
        raise RuntimeError(f"{op}: bits must be int32, got {bits.dtype}")
    check_shape(op, "bits", bits, (rows, words(columns)))
    if bits.device != like.device:
        raise RuntimeError(f"{op}: bits must be on {like.device}, got {bits.device}")
    return bits.contiguous()


def check_same_rows(op: str, grad: Tensor, input: Tensor) -> None:
    """Raises unless a gradient and an input have the same leading dimensions."""
    if grad.dim() == 0 or input.dim() == 0 or grad.shape[:-1] != input.shape[:-1]:
        raise RuntimeError(
            f"{op}: grad {list(grad.shape)} and input {list(input.shape)} must have the same leading dimensions"
        )


def far(*tensors: Tensor | None) -> bool:
    """Whether offsets in any of these take more than 32 bits."""
    return any(
        t is not None
        and sum((max(size, 1) - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) >= 1 << 31
        for t in tensors
    )
