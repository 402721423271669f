"""Masks of tensors that are spread over processes (`DTensor`, as FSDP2 and tensor parallelism make them)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LOCAL_TYPES = (Tensor, nn.Parameter)


def is_sharded(t: Tensor) -> bool:
    """Whether `t` is a `DTensor`."""
    if type(t) in _LOCAL_TYPES:  # usually; nothing has to be imported to know it
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(t, DTensor)


def placed_as(dense: Tensor, t: Tensor) -> Tensor:
    """`dense`, which every process has in full, spread as `t` is; itself where `t` is not spread."""
    if not is_sharded(t):
        return dense
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(t, DTensor)
    # No source rank: each process cuts its part out of what it has, and nothing is sent.
    return distribute_tensor(dense, t.device_mesh, t.placements, src_data_rank=None)


def local(t: Tensor) -> Tensor:
    """The part of `t` that is here, in its own memory and without its history; `t` itself where it is not spread."""
    if not is_sharded(t):
        return t
    with torch.no_grad():
        return t.to_local()  # type: ignore[attr-defined]


def local_part(dense: Tensor, t: Tensor) -> Tensor:
    """The part of `dense`, which every process has in full, that belongs to the part of `t` that is here."""
    return local(placed_as(dense, t))


def whole(t: Tensor) -> Tensor:
    """All of `t` on every process, which have to ask together; `t` itself where it is not spread."""
    return t.full_tensor() if is_sharded(t) else t  # type: ignore[attr-defined]
