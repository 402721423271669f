"""`masked_conv2d`: a convolution whose weight is masked without a masked copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops, reference
from .._mask.bits import packed_bits
from ..backends import choose, extend, trusted
from ..mask import Mask
from ..ops.masked_conv2d import output_size
from . import _backends, _channel_masks, _check
from ._conv import Geometry, Pair, check_weight, convolve


def _kernels(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packed: Sequence[Tensor] = (),
) -> Tensor:
    if not isinstance(mask, Mask):
        return F.conv2d(input, weight * mask, bias, *geometry)
    # On the CPU groups take the bits alone; the CUDA kernels read them by taps, which the plan has. The plan is asked
    # for first: what is known is known from it.
    plan = mask.plan if geometry.groups == 1 or input.is_cuda else []
    if mask.known_full:
        return F.conv2d(input, weight, bias, *geometry)
    return ops.masked_conv2d(input, weight, mask.bits, [*plan, *packed], bias, *geometry)


def _triton(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packed: Sequence[Tensor] = (),
) -> Tensor:
    if not isinstance(mask, Mask):
        return F.conv2d(input, weight * mask, bias, *geometry)
    lists = mask.block_lists
    if mask.known_full:
        return F.conv2d(input, weight, bias, *geometry)
    return _backends.triton.masked_conv2d(input, weight, mask.bits, lists, bias, *geometry)


def _reference(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packed: Sequence[Tensor] = (),
) -> Tensor:
    return reference.masked_conv2d(input, weight, mask, bias, *geometry)


def _of_channels(
    images: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packed: Sequence[Tensor],
    channels: Tensor,
) -> Tensor:
    size = output_size(images.shape[2:], weight.shape[2:], *geometry[:3])
    pointwise = list(weight.shape[2:]) == [1, 1] and (geometry.stride, geometry.padding) == ([1, 1], [0, 0])
    groups = None
    if geometry.groups == 1:
        groups = _channel_masks.groups_of(images, weight, mask, channels, size[0] * size[1], pointwise)
    if groups is None:
        return _kernels(_channel_masks.zeroed(images, channels, 2), weight, mask, bias, geometry, packed)
    dense = _channel_masks.effective_weight(weight, mask)
    if groups == "in place":
        return _in_place(ops.gathered_conv2d, images, dense, bias, geometry, channels)

    def product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, *geometry)

    return _channel_masks.compute(groups, images, dense, bias, product, size)


def _in_place(
    gathered: Callable[..., Tensor],
    images: Tensor,
    dense: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    channels: Tensor,
) -> Tensor:
    bits = packed_bits(channels if channels.dim() == 2 else channels[None])
    return gathered(images, dense, bits, bias, *geometry[:3])


def _read_in_place_on_gpu(backend: str, images: Tensor, mask: Mask, geometry: Geometry) -> bool:
    """Whether a call with channels runs `gathered_conv2d` there: by what is known without a look at values.

    Not where the weight's own mask leaves out more than whole channels, which would be lost; nor of a dense weight in
    float32, where small images would miss torch's convolution on tensor cores (TF32).
    """
    if geometry.groups != 1 or torch._C._are_functorch_transforms_active():
        return False
    _ = mask.plan  # looks the structure up where the op would, so that the first call goes the way of all others
    if not (mask.known_channels or (mask.known_full and images.dtype != torch.float32)):
        return False
    return trusted(backend, "gathered_conv2d", images.device)


def _of_channels_on_gpu(
    backend: str,
    images: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packed: Sequence[Tensor],
    channels: Tensor,
) -> Tensor:
    if not isinstance(mask, Mask) or not _read_in_place_on_gpu(backend, images, mask, geometry):
        run = _triton if backend == "triton" else _kernels
        return run(_channel_masks.zeroed(images, channels, 2), weight, mask, bias, geometry, packed)
    if not mask.known_full:
        dense = mask.dense()
        weight = torch.where(dense, weight, weight.new_zeros(()))
        channels = channels & dense.flatten(2).any(2).any(0)  # blocks that only the mask leaves out are not read either
    gathered = _backends.triton.gathered_conv2d if backend == "triton" else ops.gathered_conv2d
    return _in_place(gathered, images, weight, bias, geometry, channels)


extend("cpu", {"masked_conv2d": _kernels})
extend("cuda", {"masked_conv2d": _kernels})
extend("triton", {"masked_conv2d": _triton})
extend("reference", {"masked_conv2d": _reference})


_OF_CHANNELS: dict[str, Callable[..., Tensor]] = {  # others zero the input
    "cpu": _of_channels,
    "cuda": partial(_of_channels_on_gpu, "cuda"),
    "triton": partial(_of_channels_on_gpu, "triton"),
}


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    channels: Tensor | None = None,
) -> Tensor:
    """Convolution with a masked weight: `F.conv2d(input, where(mask, weight, 0), bias, ...)`.

    With a floating mask it is `F.conv2d(input, weight * mask, bias, ...)`. The weight's gradient is masked too, exactly
    0 where the mask is. In the output the memory format of the input is kept: channels_last gives channels_last.

    A weight under a binary mask does not contribute even when it is NaN or infinite; what non-finite *inputs* give
    where they meet only masked weights is unspecified. Sums are float32 for the half types, else the type's own, and
    bitwise the same for the same inputs and any number of threads, unless `explain` names the library: torch's own
    convolution, which runs on a masked copy of the weight where that is faster, in groups, and for a floating mask.

    With `channels` it is the convolution of `where(channels, input, 0)`: inactive channels contribute nothing even when
    they are NaN, and their gradient is exactly 0. On the CPU a kernel reads each image's channels where they lie
    (float32 and float64), or images with the same channels are computed together on those alone (half types), or the
    input is zeroed, whichever is estimated to be faster: 1.2 for a multiply-add that is read in place; 1.25 for one of
    a group, 32 for each element copied, 64 for each active weight of a group (192 for kernels larger than a pixel) and
    2^23 for each group; 1 for each multiply-add of all channels. The input is zeroed in traced and transformed code,
    and in groups. On a GPU no value is looked at: where the mask is known to hide nothing, or whole channels, torch's
    convolution runs on a masked copy of the input, or for a small one a kernel masks the input as it reads it, and
    leaves out blocks of 64 channels that none of the images at hand has active; of a mask of whole channels the weight
    is copied as well. The input is zeroed there with any other mask, in float32 with a mask that hides nothing, in
    transformed code and in groups, and on other devices always.

    Args:
        input: `[batch, in, height, width]` or `[in, height, width]`, any strides, float32, float64, bfloat16 or
            float16.
        weight: `[out, in / groups, kernel_height, kernel_width]`, the input's dtype and device.
        mask: of the weight's shape. `Mask`, bool or 0/1 integers: binary. Floating, of the weight's dtype: real-valued,
            and given a gradient where it asks for one. A `Mask` saves packing the bits in every call, and brings the
            index without which a masked weight costs what an unmasked one does. Of a tensor on CUDA only integers are
            looked at, to refuse others than 0 and 1: that waits for the device, and cannot be captured in a graph.
        bias: `[out]`, the input's dtype and device, or None.
        stride, padding, dilation: one integer, or those of height and width; `padding` may be `"same"` or `"valid"`.
        groups: parts that input and output channels are cut into.
        channels: bool `[batch, in]`, or `[in]` for all images alike (and without `batch`): what is false takes no part.

    Returns:
        `[batch, out, out_height, out_width]`, or without `batch`, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, or dtypes that differ.
        ValueError: shapes, devices or a geometry that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    return checked_masked_conv2d(input, weight, mask, bias, stride, padding, dilation, groups, channels=channels)


def checked_masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    packed: Sequence[Tensor] = (),
    channels: Tensor | None = None,
) -> Tensor:
    """`masked_conv2d` of a weight that may have been packed: `packed` is what the op `masked_conv2d_pack` gave."""
    _check.floating(input, "input")
    _check.floating(weight, "weight")
    check_weight(weight)
    binary = _check.mask_of(mask, weight)
    soft = binary if isinstance(binary, Tensor) else None
    input, weight, bias, soft = _check.autocast(input, weight, bias, soft)
    effective = binary if soft is None else soft
    backend = choose("masked_conv2d", input.device)

    def run(images: Tensor, geometry: Geometry) -> Tensor:
        if channels is not None:
            _channel_masks.check(channels, input, input.shape[:-2])
            if backend.name in _OF_CHANNELS:
                return _OF_CHANNELS[backend.name](images, weight, effective, bias, geometry, packed, channels)
            images = _channel_masks.zeroed(images, channels, 2)
        return backend.ops["masked_conv2d"](images, weight, effective, bias, geometry, packed)

    return convolve(
        run,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
    )
