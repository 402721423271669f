"""What a call is told of its mask beside the bits: the tensors of `Mask.plan` on a GPU, and a packed weight's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._operands import check_shape
from .kernels.product import LIST_BLOCK, LIST_GROUP

_LISTS, _ACTIVE, _PACKED = 2, 4, 4


class Packed(NamedTuple):
    """A weight's active values, as `masked_linear_pack` gives them.

    Attributes:
        values: row after row, in rising order of columns.
        row_starts: int64 `[out]`, where a row's begin.
        block_starts: int16 (without sign) or int32 `[out, blocks of 64 columns]`, where a block's begin in its row.
        form: empty, `[0, out, in]`: of the weight that was packed.
    """

    values: Tensor
    row_starts: Tensor
    block_starts: Tensor
    form: Tensor


class Plan(NamedTuple):
    """Of a weight `[rows, taps, channels]`; a linear layer has one tap.

    Attributes:
        of_rows, of_channels: the lists of csrc/cuda/mask_lists.h, or None: all blocks are visited.
        active: of a mask of whole channels, the active rows and columns, and the place of each among these; or None.
        packed: the weight packed, or None.
        by_taps: of a convolution, the bits in the order of taps, or None.
    """

    of_rows: Tensor | None = None
    of_channels: Tensor | None = None
    active: tuple[Tensor, ...] | None = None
    packed: Packed | None = None
    by_taps: Tensor | None = None


def _lists(op: str, plan: list[Tensor], rows: int, taps: int, channels: int) -> list[Tensor | None]:
    def blocks(size: int, side: int) -> int:
        return (size + side - 1) // side

    shapes = [
        (blocks(rows, LIST_GROUP), 1 + taps * blocks(channels, LIST_BLOCK)),
        (blocks(channels, LIST_GROUP), 1 + taps * blocks(rows, LIST_BLOCK)),
    ]
    for t in plan:
        if t.device != plan[0].device:
            raise RuntimeError(f"{op}: plan must be on one device, got {plan[0].device} and {t.device}")
    for i, shape in enumerate(shapes):
        if plan[i].dtype != torch.int32:
            raise RuntimeError(f"{op}: plan[{i}] must be int32, got {plan[i].dtype}")
        if plan[i].shape[0] > 0:  # else of a mask whose blocks are not worth leaving out
            check_shape(op, f"plan[{i}]", plan[i], shape)
    return [t.contiguous() if t.shape[0] > 0 else None for t in plan[:_LISTS]]


def linear_plan(op: str, plan: list[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Plan:
    """The plan of a linear layer's mask; a weight packed in another dtype than a cast call runs in is passed over.

    Raises:
        RuntimeError: it is not one, or one of another shape.
    """
    if not plan:
        return Plan()
    if len(plan) not in (_LISTS, _LISTS + _ACTIVE, _LISTS + _PACKED, _LISTS + _ACTIVE + _PACKED):
        raise RuntimeError(
            f"{op}: plan must have no tensors, or lists of rows and of channels, then active channels and a packed"
            f" weight if there are such, got {len(plan)}"
        )
    of_rows, of_channels = _lists(op, plan, rows, 1, columns)
    rest, active, packed = plan[_LISTS:], None, None
    # Active channels end with an int32 vector, a packed weight with an empty tensor of three dimensions.
    if rest and rest[-1].dim() == 3:
        packed = Packed(*rest[-_PACKED:])
        rest = rest[:-_PACKED]
        if tuple(packed.form.shape) != (0, rows, columns):
            raise RuntimeError(
                f"{op}: plan holds a packed weight of shape {list(packed.form.shape[1:])}, weight has {[rows, columns]}"
            )
        if packed.row_starts.dtype != torch.int64 or packed.block_starts.dtype not in (torch.int16, torch.int32):
            raise RuntimeError(f"{op}: plan does not hold a packed weight")
        check_shape(op, "packed row_starts", packed.row_starts, (rows,))
        check_shape(op, "packed block_starts", packed.block_starts, (rows, (columns + LIST_BLOCK - 1) // LIST_BLOCK))
        if packed.values.dtype != dtype:
            packed = None
    if rest:
        active = tuple(rest)
        check_shape(op, "places of rows", active[2], (rows,))
        check_shape(op, "places of columns", active[3], (columns,))
    return Plan(of_rows, of_channels, active, packed)


def conv2d_plan(op: str, plan: list[Tensor], rows: int, taps: int, channels: int) -> Plan:
    """The plan of a convolution's mask: lists, and the bits by taps where there are several.

    Raises:
        RuntimeError: it is not one, or one of another shape.
    """
    if not plan:
        return Plan()
    wanted = _LISTS + (taps > 1)
    if len(plan) != wanted:
        raise RuntimeError(f"{op}: plan must have no tensors or {wanted}, got {len(plan)}")
    of_rows, of_channels = _lists(op, plan, rows, taps, channels)
    if taps > 1:
        check_shape(op, "plan[2]", plan[2], (rows, taps * ((channels + 31) // 32)))
    return Plan(of_rows, of_channels, by_taps=plan[2].contiguous() if taps > 1 else None)
