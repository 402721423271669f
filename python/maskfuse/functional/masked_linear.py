"""`masked_linear`: a linear layer whose weight is masked without a masked copy of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops, reference
from ..backends import choose, extend
from ..mask import Mask
from . import _backends, _channel_masks, _check


def _kernels(
    input: Tensor, weight: Tensor, mask: Mask | Tensor, bias: Tensor | None, packed: Sequence[Tensor] = ()
) -> Tensor:
    if isinstance(mask, Mask):
        plan = mask.plan  # first: what is known is known from it
        if mask.known_full and (ops.LIBRARY_GEMM or input.is_cuda):
            return F.linear(input, weight, bias)
        packed = () if packed_by_triton(packed) else packed
        return ops.masked_linear(input, weight, mask.bits, [*plan, *packed], bias)
    return ops.soft_masked_linear(input, weight, mask, bias)


def _triton(
    input: Tensor, weight: Tensor, mask: Mask | Tensor, bias: Tensor | None, packed: Sequence[Tensor] = ()
) -> Tensor:
    if isinstance(mask, Mask):
        lists = mask.block_lists
        if mask.known_full:
            return F.linear(input, weight, bias)
        packed = packed if packed_by_triton(packed) else ()
        return _backends.triton.masked_linear(input, weight, mask.bits, [*lists, *packed], bias)
    return _backends.triton.soft_masked_linear(input, weight, mask, bias)


def packed_by_triton(packed: Sequence[Tensor]) -> bool:
    """Whether a weight was packed for the Triton kernels: what they read ends with an empty `[0, out, in]`."""
    return len(packed) > 0 and packed[-1].dim() == 3


def _pack(weight: Tensor, mask: Mask) -> list[Tensor]:
    return torch.ops.maskfuse.masked_linear_pack(weight, mask.bits, mask.plan)


def _triton_pack(weight: Tensor, mask: Mask) -> list[Tensor]:
    # Beside no lists of blocks a packed weight has no place in a plan, and nothing to gain.
    return torch.ops.maskfuse_triton.masked_linear_pack(weight, mask.bits, []) if mask.block_lists else []


def _reference(
    input: Tensor, weight: Tensor, mask: Mask | Tensor, bias: Tensor | None, packed: Sequence[Tensor] = ()
) -> Tensor:
    return reference.masked_linear(input, weight, mask, bias)


def _of_channels(
    input: Tensor, weight: Tensor, mask: Mask | Tensor, bias: Tensor | None, channels: Tensor
) -> Tensor | None:
    """The compact way, or None where the input had better be zeroed."""
    rows = input.reshape(-1, input.shape[-1]) if input.shape[-1] else input
    if rows.dim() != 2:
        return None
    flags = channels if channels.dim() == 1 else channels.reshape(rows.shape)
    groups = _channel_masks.groups_of(rows, weight, mask, flags)
    assert groups != "in place"  # which is for images
    if groups is None:
        return None
    output = _channel_masks.compute(groups, rows, _channel_masks.effective_weight(weight, mask), bias, F.linear)
    return output.reshape(*input.shape[:-1], weight.shape[0])


extend("cpu", {"masked_linear": _kernels, "masked_linear_pack": _pack})
extend("cuda", {"masked_linear": _kernels, "masked_linear_pack": _pack})
extend("triton", {"masked_linear": _triton, "masked_linear_pack": _triton_pack})
extend("reference", {"masked_linear": _reference})


def masked_linear(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None = None,
    channels: Tensor | None = None,
) -> Tensor:
    """Linear layer with a masked weight: `input @ where(mask, weight, 0).T + bias`.

    With a floating mask it is `input @ (weight * mask).T + bias`. Neither product is kept: the mask is applied while
    the weight is read, or, where torch's library multiplies, to a panel of it at a time (8 MiB or a little more; on a
    GPU to all of it, for the time of a call). The weight's gradient is masked too, exactly 0 where the mask is.

    A weight under a binary mask does not contribute even when it is NaN or infinite; what non-finite *inputs* give
    where they meet only masked weights is unspecified. Sums are float32 for the half types, else the type's own, and
    bitwise the same for the same inputs; for any number of threads, too, unless `explain` names the library or
    `F.linear`: those also follow torch's own settings, such as `torch.set_float32_matmul_precision`.

    With `channels` it is the layer of `where(channels, input, 0)`: inactive channels contribute nothing even when they
    are NaN, and their gradient is exactly 0. Rows with the same channels are computed together on those channels alone
    where that is estimated to be faster than zeroing the input, by the rule that `masked_conv2d` names.

    Args:
        input: `[..., in]`, any strides, any leading dimensions, float32, float64, bfloat16 or float16.
        weight: `[out, in]`, the input's dtype and device.
        mask: `[out, in]`. `Mask`, bool or 0/1 integers: binary. Floating, of the weight's dtype: real-valued,
            and given a gradient where it asks for one. A `Mask` saves packing the bits in every call, and brings the
            index of what is active, on CUDA of blocks, without which masked weights cost time too. Of a tensor on CUDA
            only integers are looked at, to refuse others than 0 and 1: that waits for the device, and cannot be
            captured in a graph.
        bias: `[out]`, the input's dtype and device, or None.
        channels: bool of the input's shape, or `[in]` for all rows alike: what is false takes no part.

    Returns:
        `[..., out]`, contiguous, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, or dtypes that differ.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    return checked_masked_linear(input, weight, mask, bias, channels=channels)


def checked_masked_linear(
    input: Tensor,
    weight: Tensor,
    mask: Mask | Tensor,
    bias: Tensor | None,
    packed: Sequence[Tensor] = (),
    channels: Tensor | None = None,
) -> Tensor:
    """`masked_linear` of a weight that may have been packed: `packed` is what the op `masked_linear_pack` gave."""
    _check.floating(input, "input")
    _check.floating(weight, "weight")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape [out, in], got {list(weight.shape)}")
    mask = _check.mask_of(mask, weight)
    soft = mask if isinstance(mask, Tensor) else None
    input, weight, bias, soft = _check.autocast(input, weight, bias, soft)
    mask = mask if soft is None else soft
    _check.linear_operands(input, weight, bias)
    backend = choose("masked_linear", input.device)
    run = backend.ops["masked_linear"]
    if channels is not None:
        _channel_masks.check(channels, input, input.shape)
        if backend.name == "cpu":
            output = _of_channels(input, weight, mask, bias, channels)
            if output is not None:
                return output
        input = _channel_masks.zeroed(input, channels)
    return run(input, weight, mask, bias, packed) if packed else run(input, weight, mask, bias)
