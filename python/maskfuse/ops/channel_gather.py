"""`channel_gather` and `channel_scatter`: each is the other's derivative.

They have one signature, (input, channels, num_channels, batch, batch_size): the sizes are those of the unselected side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._memory_format import memory_format_of
from .autograd import Product, multilinear


def activation_like(t: Tensor, samples: int, channels: int) -> Tensor:
    """An uninitialised activation of another size in the memory format of `t`."""
    shape = (samples, channels, *t.shape[2:])
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=memory_format_of(t))


@torch.library.register_fake("maskfuse::channel_gather")
def _(input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int) -> Tensor:
    return activation_like(input, input.shape[0] if batch is None else batch.shape[0], channels.shape[-1])


@torch.library.register_fake("maskfuse::channel_scatter")
def _(
    input: Tensor, channels: Tensor, num_channels: int, batch: Tensor | None, batch_size: int, unique: bool
) -> Tensor:
    return activation_like(input, batch_size, num_channels)


def vmap_trailing(namespace: str, name: str, operand: int = 0) -> None:
    """Registers vmap for an op that treats all dimensions behind the channels alike: a batch is one more of them.

    Where an index is batched too, the samples are computed one by one.
    """
    op: Callable[..., Tensor] = getattr(getattr(torch.ops, namespace), name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        values = [a.movedim(d, -1) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
        if all(dim is None for i, dim in enumerate(in_dims) if i != operand):
            return op(*values), -1
        samples = [
            op(*[v.select(-1, i) if isinstance(d, int) else v for v, d in zip(values, in_dims, strict=True)])
            for i in range(info.batch_size)
        ]
        if samples:
            return torch.stack(samples), 0
        zeros = [v.new_zeros(v.shape[:-1]) if isinstance(d, int) else v for v, d in zip(values, in_dims, strict=True)]
        return op(*zeros).unsqueeze(0)[:0], 0

    torch.library.register_vmap(f"{namespace}::{name}", rule)


class ChannelGather(NamedTuple):
    """The two ops of one namespace, differentiable."""

    channel_gather: Product
    channel_scatter: Product


def products(namespace: str) -> ChannelGather:
    """Makes a namespace's ops differentiable, once."""
    # What is put back, or summed where the index repeats an entry; `unique` would refuse those.
    gather = multilinear(namespace, "channel_gather", {0: lambda v, grad: scatter(grad, v[1], v[2], v[3], v[4], False)})
    scatter = multilinear(namespace, "channel_scatter", {0: lambda v, grad: gather(grad, v[1], v[2], v[3], v[4])})
    vmap_trailing(namespace, "channel_gather")
    vmap_trailing(namespace, "channel_scatter")
    return ChannelGather(gather, scatter)


channel_gather, channel_scatter = products("maskfuse")
