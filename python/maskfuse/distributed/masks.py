"""The same masks in all processes: checked, or taken from one of them."""

from __future__ import annotations

import hashlib

from torch import nn

from .. import _processes
from .._checks import check_module
from .._processes import Group
from ..syncing import give, held


def broadcast_masks(model: nn.Module, process_group: Group = None, group_src: int = 0) -> bool:
    """Gives every process the masks that one of them has; returns whether any was another here.

    `DistributedDataParallel` sends parameters and buffers from its first process to the others when it is made, but not
    masks, which are neither. Call this beside it where the processes' masks may differ: each has drawn its own, or only
    one has loaded a checkpoint, as with `set_model_state_dict`'s `broadcast_from_rank0` (into models whose masks hide
    nothing: loaded weights are zeroed under a mask that is there). Schedules keep masks the same by themselves. What is
    sent is what `sync_masks` carries.

    Args:
        model: the same in each process but for its masks; wrapped or not.
        process_group: None for the default one.
        group_src: the rank, counted in the group, whose masks are taken.

    Raises:
        TypeError: `model` is no module.
        ValueError: another process's model has other layers, or other shapes; nothing is changed here then.
    """
    check_module(model)
    if _processes.count(process_group) == 1:
        return False
    values = _processes.ones_object({name: one.sent() for name, one in held(model).items()}, group_src, process_group)
    return give(model, values, f"the model of process {group_src}")


def check_same_masks(model: nn.Module, process_group: Group = None) -> None:
    """Raises in every process of a group where masks, or whatever else `sync_masks` carries, differ between them.

    Args:
        model: wrapped or not.
        process_group: None for the default one.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: they do; it names what differs.
    """
    check_module(model)
    if _processes.count(process_group) == 1:
        return
    digests = {name: one.digest() for name, one in held(model).items()}
    everyone = _processes.all_objects(digests, process_group)
    names = list(dict.fromkeys(name for one in everyone for name in one))
    odd = [name for name in names if len({one.get(name) for one in everyone}) > 1]
    if odd:
        more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise RuntimeError(
            f"all processes must have the same masks, but the {odd[0]} differs between them{more}; "
            "maskfuse.distributed.broadcast_masks(model) gives all of them those of one"
        )


def digest(model: nn.Module) -> int:
    """A number of 62 bits, the same in processes whose masks are."""
    text = "\n".join(f"{name} {one.digest()}" for name, one in held(model).items())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


__all__ = ["broadcast_masks", "check_same_masks"]
