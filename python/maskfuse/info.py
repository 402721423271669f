"""What is built, what is loaded, which kernel runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import operator
import platform
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import _library, backends
from ._self_test.record import version
from .functional._backends import triton_is_interpreted
from .functional._check import FLOATING
from .functional.masked_linear import packed_by_triton
from .mask import COMPACT_DENSITY, Mask, has_lists, has_plan
from .nn._compact import CompactLayer
from .nn._gated import GatedLayer
from .nn.compact_conv2d import CompactConv2d
from .ops import LIBRARY_GEMM
from .ops.library import library_info, pairs


def build_info() -> dict[str, Any]:
    """What was built and what is loaded: plain values, ready for JSON.

    Keys: `version`, `torch`, `python`, `compiler`, `torch_abi_target`, `cpu_levels` (compiled in and able to run
    here), `cpu_level` (in use; MASKFUSE_CPU overrides), `backends` (in order of preference), `cuda`: `loaded`,
    `reason` (why not, or None) and what the CUDA library says of itself; and `triton`: `version` (None where it is not
    installed), `loaded` (whether its backend was used, for which it is imported) and `interpreted`.
    """
    library = library_info()
    cuda: dict[str, Any] = {"loaded": _library.cuda_reason is None, "reason": _library.cuda_reason}
    if cuda["loaded"]:
        cuda.update(pairs(torch.ops.maskfuse.cuda_library_info()))
    return {
        "version": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": library["compiler"],
        "torch_abi_target": library["torch_abi_target"],
        "cpu_levels": library["cpu_levels"].split(","),
        "cpu_level": torch.ops.maskfuse.cpu_level(),
        "backends": backends.names(),
        "cuda": cuda,
        "triton": {
            "version": _triton_version(),
            "loaded": "maskfuse.triton" in sys.modules,
            "interpreted": triton_is_interpreted(),
        },
    }


def _triton_version() -> str | None:
    """Without importing it. It has other names where a maker of GPUs packages it."""
    for name in ("triton", "pytorch-triton-rocm", "pytorch-triton", "triton-rocm", "triton-windows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


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
    """Which kernel runs each pass of an op, and what was ruled out. `str()` is the text for people."""

    op: str
    device: str
    backend: str
    kernels: dict[str, str]
    estimates: dict[str, dict[str, float]]  # pass -> kernel -> estimated microseconds, the chosen one first
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


_DIRECTIONS = ("forward", "input_grad", "weight_grad")


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


def _backend(op: str, on: torch.device) -> tuple[str, dict[str, str]]:
    """The backend that runs an op, and why the others do not."""
    backend = backends.choose(op, on, warn=False).name
    others = {
        name: reason or "not asked for" if backends.requested() else reason or "comes after it"
        for name, reason in backends.verdicts(op, on)
        if name != backend
    }
    return backend, others


def _estimates(candidates: str) -> dict[str, float]:
    """Kernel -> estimated microseconds, of what the ops say that name candidates: the chosen one first."""
    words = [line.split() for line in candidates.splitlines()]
    return {kernel: float(time) / 1e3 for kernel, time, *_ in words}


def _conv_arguments(
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


def _reads_packed(layer_or_mask: Any, dtype: torch.dtype, backend: str) -> bool:
    """Whether calls of a layer in this dtype read values that were packed for this backend, whose form is the last
    tensor."""
    packed: Any = getattr(layer_or_mask, "_packed", ())
    if not packed or packed_by_triton(packed) != (backend == "triton"):
        return False
    return bool(packed[-1].dtype == dtype and layer_or_mask._packed_for(layer_or_mask._kept, layer_or_mask._mask))


def _gpu(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and ten times the compute capability; of the CPU, what Triton's interpreter is taken for."""
    if device.type == "cpu":
        return 6, 0
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, 10 * found.major + found.minor


def _gpu_kernel(
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
    about = _conv_arguments(layer_or_mask, mask, batch, size) if conv else (batch, mask.bits, mask.shape[1], mask.plan)
    backend, ruled_out = _backend(op, on)
    packed_values: Any = getattr(layer_or_mask, "_packed", ())
    plan = [*about[3], *([] if packed_by_triton(packed_values) else packed_values)]
    candidates = getattr(torch.ops.maskfuse, f"{op}_candidates")
    plain = "F.conv2d" if conv else "F.linear"
    layout = (memory_format == torch.channels_last,) if conv else ()
    kernels, estimates = {}, {}
    for direction in _DIRECTIONS:
        if backend in ("cuda", "triton"):
            ops = torch.ops.maskfuse if backend == "cuda" else torch.ops.maskfuse_triton
            packed = _reads_packed(layer_or_mask, dtype, backend)
            kernels[direction] = (
                plain if mask.known_full else _gpu_kernel(ops, direction, mask, about, dtype, packed, _gpu(on))
            )
        elif backend != "cpu":
            kernels[direction] = f"torch.where and {plain}"
        elif mask.structure == "full" and (conv or LIBRARY_GEMM):
            kernels[direction] = plain
        else:
            estimates[direction] = _estimates(candidates(direction, *about[:3], plan, *about[4:], dtype, *layout))
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
    backend, ruled_out = _backend(op, on)
    kernels: dict[str, str] = {}
    estimates: dict[str, dict[str, float]] = {}
    for direction in _DIRECTIONS:
        if conv or backend == "reference":
            kernels[direction] = f"{'F.conv2d' if conv else 'F.linear'} on weight * gate"
        elif backend == "cpu":
            bits = Mask.full(weight.shape).bits
            found = torch.ops.maskfuse.masked_linear_candidates(direction, batch, bits, weight.shape[1], [], dtype)
            estimates[direction] = _estimates(found)
            if dtype.itemsize < 4:  # the library would round the product of a weight and its gate
                estimates[direction].pop("library", None)
            kernels[direction] = f"{next(iter(estimates[direction]))} {torch.ops.maskfuse.cpu_level()}"
        else:
            ops = torch.ops.maskfuse if backend == "cuda" else torch.ops.maskfuse_triton
            processors, capability = _gpu(on)
            # Hopper's own kernels take bits alone.
            about = (batch, *weight.shape, dtype, False, processors, min(capability, 80))
            kernels[direction] = ops.masked_linear_choice(direction, *about)
    gates = f"{layer.kind} gates at a temperature of {layer.temperature:.4g} on {list(weight.shape)}"
    return Explanation(op, on.type, backend, kernels, estimates, ruled_out, gates)
