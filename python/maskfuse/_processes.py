"""Processes that train one model together (`torch.distributed`); alone, nothing here says or waits for anything."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

Group: TypeAlias = "torch.distributed.ProcessGroup | None"  # None: the default one


def count(group: Group = None) -> int:
    """Number of processes in a group: 1 where `torch.distributed` does not run, and for those outside of the group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return max(torch.distributed.get_world_size(group), 1)


def first_ones(t: Tensor, group: Group = None) -> Tensor:
    """The tensor of the group's first process, of the same shape and dtype in each; `t` itself where one is alone."""
    if count(group) == 1:
        return t
    t = t.clone()
    torch.distributed.broadcast(t, group=group, group_src=0)
    return t


def ones_object(value: Any, rank: int, group: Group = None) -> Any:
    """What a group's process `rank`, counted in the group, gives, pickled; `value` itself where one is alone."""
    if count(group) == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, group=group, group_src=rank)
    return values[0]


def all_objects(value: Any, group: Group = None) -> list[Any]:
    """What each of a group's processes gives, pickled, in the order of their ranks."""
    if count(group) == 1:
        return [value]
    values: list[Any] = [None] * count(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values
