"""`explain`: which kernels run a layer, and what was ruled out."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._kernel_choice import DIRECTIONS, backend_of, conv_arguments, estimates_of, gpu_kernel, gpu_of, reads_packed
from .functional._check import FLOATING
from .functional.masked_linear import packed_by_triton
from .mask import Mask
from .nn._compact import CompactLayer
from .nn._gated import GatedLayer
from .ops import LIBRARY_GEMM

_KERNELS = {
    "naive": "three loops, one result at a time",
    "decode": "packed weights: bits, columns or lines say what each active one meets; nothing else is read",
    "row_dot": "dot products over rows of the weight, mask applied in the load",
    "streamed": "rows of the weight streamed past sums held in cache, mask applied in the load",
    "accumulate": "active weights times lines of the batch or of pixels; four rows at once where they share columns",
    "shifted": "active weights times lines of pixels of one copy of the input, a sum for each of a kernel's columns",
    "sampled": "one product over the batch, or over all pixels, for each active weight",
    "tiled": "register tiles of the gradient, masked as they are stored; empty ones skipped",
    "direct": "register tiles over all weights of the active channels, the mask applied as they are copied",
    "element": "register tiles of single elements, the mask applied as the weight is read",
    "product_sm90": "tiles on Hopper's tensor cores, the weight masked in registers; empty blocks not visited",
    "product": "tiles on tensor cores, the mask applied on the way there; empty blocks not visited",
    "element_product": "tiles of single multiply-adds, the mask applied on the way there; empty blocks not visited",
    "library": "torch's own product: on a masked copy, a panel at a time, or on the active channels alone",
}


@dataclass(frozen=True)
class Explanation:
    """Which kernel runs each pass of an op, and what was ruled out. `str()` is the text for people.

    Attributes:
        op: `masked_linear`, or which other one.
        device: `cpu` or `cuda`.
        backend: that runs it.
        kernels: pass (`forward`, `input_grad`, `weight_grad`) -> kernel.
        estimates: pass -> kernel -> estimated microseconds, the chosen one first; empty on a GPU.
        ruled_out: backend -> why it does not run the op.
        mask: its `repr`, or which gates.
    """

    op: str
    device: str
    backend: str
    kernels: dict[str, str]
    estimates: dict[str, dict[str, float]]
    ruled_out: dict[str, str]
    mask: str

    def __str__(self) -> str:
        """One line a pass, one line a backend ruled out."""
        lines = [f"{self.op} on {self.device}: backend {self.backend}", f"  mask         {self.mask}"]
        for direction, kernel in self.kernels.items():
            name = kernel.removeprefix("linear: ").split()[0]
            estimates = dict(self.estimates.get(direction, {}))
            cost = f", estimated {estimates.pop(name):,.0f} us" if name in estimates else ""
            detail = f": {_KERNELS[name]}" if name in _KERNELS else ""
            lines.append(f"  {direction:<12} {kernel}{cost}{detail}")
            lines += [f"  {'':<12} not {other}: estimated {time:,.0f} us" for other, time in estimates.items()]
        lines += [f"  not {name}: {reason}" for name, reason in self.ruled_out.items()]
        return "\n".join(lines)


def checked_batch(batch: Any) -> int:
    """A number of rows or images.

    Raises:
        TypeError: no integer.
        ValueError: negative.
    """
    try:
        checked = operator.index(batch)
    except TypeError:
        raise TypeError(f"batch must be an integer, got {batch!r}") from None
    if checked < 0:
        raise ValueError(f"batch must not be negative, got {checked}")
    return checked


def _checked_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in FLOATING:
        raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    return dtype


def explain(
    layer_or_mask: nn.Module | Mask,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Explanation:
    """Which kernels run a masked or compact layer, by the functions that choose them in a call without `channels`.

    With `channels` a convolution may go another way: `masked_conv2d` says which, and by what.

    Args:
        layer_or_mask: a `MaskedLinear` or `MaskedConv2d`, the compact twin of one, which makes its weight for the
            same kernels in each pass, or the `Mask` of one; a convolution's mask alone is taken for a layer that keeps
            the size of images (stride and dilation 1, half of the kernel as padding). Or a `GatedLinear` or
            `GatedConv2d`, which computes with all of its weights; a convolution needs no size then.
        batch: number of input rows (all leading dimensions together), or of images.
        device: where; the layer's or mask's device by default.
        dtype: of the operands; the layer's, or float32.
        size: height and width of a convolution's input.
        memory_format: of a convolution's input, `torch.contiguous_format` or `torch.channels_last`.

    Returns:
        An `Explanation`: `print` it, or read its attributes.

    Raises:
        TypeError: neither a masked, compact or gated layer nor a mask, a batch that is no integer, or a dtype that no
            kernel takes.
        ValueError: a negative batch, a mask of another shape, or a convolution without a size that its kernel fits.
    """
    batch = checked_batch(batch)
    if isinstance(layer_or_mask, GatedLayer):
        return _explain_gated(layer_or_mask, batch, device, dtype)
    mask = layer_or_mask if isinstance(layer_or_mask, Mask) else getattr(layer_or_mask, "mask", None)
    if not isinstance(mask, Mask):
        raise TypeError(f"layer_or_mask must be a masked or gated layer or a Mask, got {type(layer_or_mask).__name__}")
    if len(mask.shape) not in (2, 4):
        raise ValueError(
            f"layer_or_mask must have a mask [out, in] or [out, in / groups, height, width], got {list(mask.shape)}"
        )
    if isinstance(layer_or_mask, nn.Module):
        weight = layer_or_mask.values if isinstance(layer_or_mask, CompactLayer) else layer_or_mask.weight
        assert isinstance(weight, torch.Tensor)
        device = device or weight.device
        dtype = dtype or weight.dtype
    on = torch.device(device or mask.device)
    dtype = _checked_dtype(dtype or torch.float32)

    conv = len(mask.shape) == 4
    _ = mask.plan  # what calls know of the mask they know from it
    op = "masked_conv2d" if conv else "masked_linear"
    about = conv_arguments(layer_or_mask, mask, batch, size) if conv else (batch, mask.bits, mask.shape[1], mask.plan)
    backend, ruled_out = backend_of(op, on)
    packed_values: Any = getattr(layer_or_mask, "_packed", ())
    plan = [*about[3], *([] if packed_by_triton(packed_values) else packed_values)]
    candidates = getattr(torch.ops.maskfuse, f"{op}_candidates")
    plain = "F.conv2d" if conv else "F.linear"
    layout = (memory_format == torch.channels_last,) if conv else ()
    kernels, estimates = {}, {}
    for direction in DIRECTIONS:
        if backend in ("cuda", "triton"):
            ops = torch.ops.maskfuse if backend == "cuda" else torch.ops.maskfuse_triton
            packed = reads_packed(layer_or_mask, dtype, backend)
            kernels[direction] = (
                plain if mask.known_full else gpu_kernel(ops, direction, mask, about, dtype, packed, gpu_of(on))
            )
        elif backend != "cpu":
            kernels[direction] = f"torch.where and {plain}"
        elif mask.structure == "full" and (conv or LIBRARY_GEMM):
            kernels[direction] = plain
        else:
            estimates[direction] = estimates_of(candidates(direction, *about[:3], plan, *about[4:], dtype, *layout))
            kernels[direction] = f"{next(iter(estimates[direction]))} {torch.ops.maskfuse.cpu_level()}"
    return Explanation(op, on.type, backend, kernels, estimates, ruled_out, repr(mask))


def _explain_gated(
    layer: GatedLayer, batch: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> Explanation:
    """Of a layer that takes gates into each product: kernels that read factors, or torch's on the gated weight."""
    weight = layer.weight
    on = torch.device(device or weight.device)
    dtype = _checked_dtype(dtype or weight.dtype)
    conv = weight.dim() == 4
    kind = "gated" if layer.kind == "sigmoid" else "masked"  # other kinds' gates are a tensor, as real-valued masks are
    op = f"{kind}_conv2d" if conv else f"{kind}_linear"
    backend, ruled_out = backend_of(op, on)
    kernels: dict[str, str] = {}
    estimates: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        if conv or backend == "reference":
            kernels[direction] = f"{'F.conv2d' if conv else 'F.linear'} on weight * gate"
        elif backend == "cpu":
            bits = Mask.full(weight.shape).bits
            found = torch.ops.maskfuse.masked_linear_candidates(direction, batch, bits, weight.shape[1], [], dtype)
            estimates[direction] = estimates_of(found)
            if dtype.itemsize < 4:  # the library would round the product of a weight and its gate
                estimates[direction].pop("library", None)
            kernels[direction] = f"{next(iter(estimates[direction]))} {torch.ops.maskfuse.cpu_level()}"
        else:
            ops = torch.ops.maskfuse if backend == "cuda" else torch.ops.maskfuse_triton
            processors, capability = gpu_of(on)
            # Hopper's own kernels take bits alone.
            about = (batch, *weight.shape, dtype, False, processors, min(capability, 80))
            kernels[direction] = ops.masked_linear_choice(direction, *about)
    gates = f"{layer.kind} gates at a temperature of {layer.temperature:.4g} on {list(weight.shape)}"
    return Explanation(op, on.type, backend, kernels, estimates, ruled_out, gates)
