"""What kernels derive from the bits of a mask, once: an index on the CPU, lists of blocks on a GPU."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import torch
from torch import Tensor

from .bits import bit_ops, rows_columns
from .packed import PackedMask

_planning = threading.Lock()


def _unlock_in_child() -> None:
    """A process forked while another thread made a plan has the lock, and nobody who would release it."""
    global _planning
    _planning = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)

# Weights below which a call costs more than anything that a plan could save.
_PLANNED = 4096

# Active share of the weights up to which a product of whole channels runs on the active ones alone.
COMPACT_DENSITY = 0.8

# Share of the blocks of 128 x 64 with an active weight up to which kernels on a GPU visit these alone: what skips the
# others takes 1.3 times as long for each block as the library, which skips none.
LISTED_SHARE = 0.7


def plan_waits(device: torch.device) -> bool:
    """Whether making a plan reads the bits back from the device: then it can be no part of a call, which must not wait
    and may be captured in a graph."""
    return device.type == "cuda"


def has_plan(mask: PackedMask) -> bool:
    """Whether masks of this shape have one, so that the structure is looked up for it."""
    return len(mask.shape) in (2, 4) and mask.numel >= _PLANNED


def plan_of(mask: PackedMask) -> list[Tensor]:
    """The mask's plan, made if nobody has asked for it, in no traced code."""
    plan = mask._plan
    if plan is None:
        if torch.compiler.is_compiling():
            return []
        with _planning:
            plan = mask._plan  # another thread may have made it meanwhile
            if plan is None:
                plan = make_plan(mask)
                # A plan looks the structure up.
                full = has_plan(mask) and mask._facts is not None and mask.structure == "full"
                object.__setattr__(mask, "known_full", full)
                object.__setattr__(mask, "_plan", plan)
    return plan


def block_lists_of(mask: PackedMask) -> list[Tensor]:
    """The plan of kernels on a GPU, which on the CPU is made for Triton's interpreter."""
    plan = plan_of(mask)
    if mask.device.type != "cpu" or not plan:
        return plan
    if mask._block_lists is None:
        if torch.compiler.is_compiling():
            return []
        object.__setattr__(mask, "_block_lists", _make_block_lists(mask, torch.ops.maskfuse_triton))
    assert mask._block_lists is not None
    return mask._block_lists


def make_plan(mask: PackedMask) -> list[Tensor]:
    """A plan of the mask's bits, empty for a mask that needs none."""
    if not has_plan(mask) or mask.structure == "full":
        return []
    rows, columns = rows_columns(mask.shape, "shape")
    if mask.device.type == "cuda":
        ops = bit_ops(mask.device)
        return [] if ops is None else _make_block_lists(mask, ops)
    if mask.device.type != "cpu":
        return []
    # A channel's weights lie together; in a linear layer every weight is on its own, which 0 stands for.
    taps = math.prod(mask.shape[2:]) if len(mask.shape) == 4 else 0
    together = max(1, taps)
    with torch.inference_mode(False):
        transposed = torch.ops.maskfuse.mask_transpose(mask.bits, columns, together)
        plan = [
            torch.ops.maskfuse.mask_plan(mask.bits, columns, taps),
            torch.ops.maskfuse.mask_plan(transposed, rows * together, taps),
        ]
    for t in plan:
        # What torch._dynamo.maybe_mark_dynamic sets, without importing the compiler: a mask of another size of plan
        # does not recompile a model.
        t._dynamo_weak_dynamic_indices = {0}
    return plan if all(t.numel() for t in plan) else []


def _make_block_lists(mask: PackedMask, ops: Any) -> list[Tensor]:
    """The plan of kernels on a GPU, made by `ops`."""
    _, columns = rows_columns(mask.shape, "shape")
    with torch.inference_mode(False):
        plan: list[Tensor] = ops.mask_lists(mask.bits, columns, max(1, math.prod(mask.shape[2:])))
        plan[:2] = [lists if _worth_listing(lists) else lists[:0] for lists in plan[:2]]
        if len(mask.shape) == 2 and mask.structure == "channels" and mask.density <= COMPACT_DENSITY:
            plan = [*plan, *(t.to(mask.device) for t in mask.active_channels())]
        return plan


def _worth_listing(lists: Tensor) -> bool:
    """Whether lists `[groups, 1 + blocks]` of active blocks, behind their number, leave out enough of them."""
    return int(lists[:, 0].sum()) <= LISTED_SHARE * lists.shape[0] * (lists.shape[1] - 1)


def has_lists(plan: list[Tensor], direction: str) -> bool:
    """Whether a pass is given a list of the blocks that it visits, by a plan of kernels on a GPU."""
    return len(plan) > 0 and plan[1 if direction == "input_grad" else 0].shape[0] > 0
