"""Which kernel a pass of a layer runs, by the functions that choose in a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import backends
from ._mask.plans import COMPACT_DENSITY, has_lists, has_plan
from .functional.masked_linear import packed_by_triton
from .mask import Mask
from .nn.compact_conv2d import CompactConv2d

DIRECTIONS = ("forward", "input_grad", "weight_grad")


def backend_of(op: str, on: torch.device) -> tuple[str, dict[str, str]]:
    """The backend that runs an op, and why the others do not."""
    backend = backends.choose(op, on, warn=False).name
    others = {
        name: reason or "not asked for" if backends.requested() else reason or "comes after it"
        for name, reason in backends.verdicts(op, on)
        if name != backend
    }
    return backend, others


def estimates_of(candidates: str) -> dict[str, float]:
    """Kernel -> estimated microseconds, of what the ops say that name candidates: the chosen one first."""
    words = [line.split() for line in candidates.splitlines()]
    return {kernel: float(time) / 1e3 for kernel, time, *_ in words}


def conv_arguments(
    layer_or_mask: object, mask: Mask, batch: int, size: tuple[int, int] | None
) -> tuple[list[int], list[int], torch.Tensor, list[torch.Tensor], list[int], list[int], list[int], int]:
    """What the op masked_conv2d_candidates takes, of a layer or of one that keeps the size of images."""
    if size is None or len(size) != 2:
        raise ValueError(f"size must be height and width of a convolution's input, got {size!r}")
    kernel = list(mask.shape[2:])
    stride, padding, dilation, groups = [1, 1], [k // 2 for k in kernel], [1, 1], 1
    if isinstance(layer_or_mask, (nn.Conv2d, CompactConv2d)):
        stride, dilation, groups = list(layer_or_mask.stride), list(layer_or_mask.dilation), layer_or_mask.groups
        if layer_or_mask.padding == "valid":
            padding = [0, 0]
        elif layer_or_mask.padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = [total // 2 for total in totals]
            # A call pads by an odd pixel beforehand.
            size = (size[0] + totals[0] % 2, size[1] + totals[1] % 2)
        else:
            padding = [int(p) for p in layer_or_mask.padding]
    if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        raise ValueError(f"size {tuple(size)} is smaller than the kernel {kernel} with padding {padding}")
    images = [batch, mask.shape[1] * groups, *size]
    return images, kernel, mask.bits, mask.plan if groups == 1 else [], stride, padding, dilation, groups


# Rows up to which a packed weight is read on CUDA (kDecodeRows in csrc/cuda/masked_linear_decode.h).
_DECODE_ROWS = 16


def reads_packed(layer_or_mask: Any, dtype: torch.dtype, backend: str) -> bool:
    """Whether calls of a layer in this dtype read values that were packed for this backend, whose form is the last
    tensor."""
    packed: Any = getattr(layer_or_mask, "_packed", ())
    if not packed or packed_by_triton(packed) != (backend == "triton"):
        return False
    return bool(packed[-1].dtype == dtype and layer_or_mask._packed_for(layer_or_mask._kept, layer_or_mask._mask))


def gpu_of(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and ten times the compute capability; of the CPU, what Triton's interpreter is taken for."""
    if device.type == "cpu":
        return 6, 0
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, 10 * found.major + found.minor


def gpu_kernel(
    ops: Any, direction: str, mask: Mask, about: tuple[Any, ...], dtype: torch.dtype, packed: bool, gpu: tuple[int, int]
) -> str:
    """The kernel of a pass on a GPU and how it cuts the product, by the functions that choose in a call.

    `ops` are the compiled or the Triton ones; `gpu` is its number of multiprocessors, and ten times its compute
    capability.
    """
    if len(mask.shape) == 4:
        images, kernel, _, _, stride, padding, dilation, groups = about
        out, lists = mask.shape[0], has_lists(mask.block_lists, direction)
        return ops.masked_conv2d_choice(
            direction, images, kernel, out, stride, padding, dilation, groups, dtype, lists, *gpu
        )
    batch = about[0]
    if packed and direction == "forward" and batch <= _DECODE_ROWS:
        return "decode"
    channels = has_plan(mask) and mask.structure == "channels" and mask.density <= COMPACT_DENSITY
    lists = has_lists(mask.block_lists, direction)
    return ops.masked_linear_choice(direction, batch, *mask.shape, dtype, channels, lists, *gpu)
