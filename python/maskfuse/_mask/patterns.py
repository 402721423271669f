"""Which weights a mask keeps, as bool tensors: the largest, some of every few, blocks, channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import describe
from .bits import rows_columns


def above(t: Tensor, value: float) -> Tensor:
    """True where `|t| > value`."""
    _check_real(t, "t")
    t = t.detach()
    return (t > value) | (t < -value)  # abs of the smallest integer is itself


def topk(scores: Tensor, density: float) -> Tensor:
    """True at the `round(density * numel)` largest scores."""
    _check_real(scores, "scores")
    density = _checked_density(density)
    flat = _sortable(scores, "scores").reshape(-1)
    return largest(flat, round(density * flat.numel())).reshape(scores.shape)


def random(shape: Sequence[int], density: float, generator: torch.Generator | None) -> Tensor:
    """True at `round(density * numel)` places drawn uniformly."""
    rows_columns(shape, "shape")
    density = _checked_density(density)
    device = generator.device if generator is not None else torch.device("cpu")
    numel = math.prod(shape)
    scores = torch.rand(numel, generator=generator, device=device, dtype=torch.float64)
    return largest(scores, round(density * numel)).reshape(tuple(shape))


def n_m(scores: Tensor, n: int, m: int) -> Tensor:
    """True at the `n` largest of every `m` consecutive scores along dim 1."""
    _check_real(scores, "scores")
    if scores.dim() < 2:
        raise ValueError(f"scores must have shape [out, in, ...], got {list(scores.shape)}")
    if not (m > 0 and 0 <= n <= m):
        raise ValueError(f"n and m must satisfy 0 <= n <= m, m > 0, got n={n}, m={m}")
    if scores.shape[1] % m:
        raise ValueError(f"m={m} must divide the input dimension of scores, {list(scores.shape)}")
    if scores.numel() == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    grouped = _sortable(scores, "scores").movedim(1, -1).unflatten(-1, (-1, m))
    best = grouped.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    active = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True)
    return active.flatten(-2).movedim(-1, 1)


def blocks(active: Tensor, block: tuple[int, int], shape: Sequence[int] | None) -> Tensor:
    """True in the blocks of `block = (rows, columns)` that are `active`."""
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise TypeError(f"block must be (rows, columns), got {block!r}")
    height, width = block
    if not isinstance(active, Tensor) or active.dtype != torch.bool or active.dim() != 2:
        raise TypeError(f"active must be a bool tensor [block rows, block columns], got {describe(active)}")
    if height < 1 or width < 1:
        raise ValueError(f"block must be positive, got {block}")
    shape = tuple(shape) if shape is not None else (active.shape[0] * height, active.shape[1] * width)
    rows, columns = rows_columns(shape, "shape")
    needed = [-(-rows // height), -(-columns // width)]
    if list(active.shape) != needed:
        raise ValueError(
            f"active must have shape {needed} for shape {list(shape)} in blocks of {tuple(block)}, "
            f"got {list(active.shape)}"
        )
    dense = active.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    return dense.reshape(shape)


def channels(shape: Sequence[int], out: Tensor | None, inp: Tensor | None) -> Tensor:
    """True where both the output channel (dim 0) and the input channel (dim 1) are active."""
    rows_columns(shape, "shape")
    if len(shape) < 2:
        raise ValueError(f"shape must be [out, in, ...], got {list(shape)}")
    device = next((c.device for c in (out, inp) if isinstance(c, Tensor)), torch.device("cpu"))
    rows = _channel_flags(out, shape[0], "out", device)
    columns = _channel_flags(inp, shape[1], "inp", device)
    dense = (rows[:, None] & columns[None, :]).reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
    return dense.expand(tuple(shape))


def largest(flat: Tensor, count: int) -> Tensor:
    """Bool tensor of the `count` largest of `flat`, ties by index: a selection, not a sort."""
    if count == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    smallest = torch.kthvalue(flat, flat.numel() - count + 1).values
    active = flat > smallest
    ties = (flat == smallest).nonzero().squeeze(1)[: count - int(active.sum())]
    active[ties] = True
    return active


def _check_real(t: object, name: str) -> None:
    if not isinstance(t, Tensor) or t.dtype == torch.bool or t.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {describe(t)}")


def _checked_density(density: float) -> float:
    density = float(density)
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must be in 0..1, got {density}")
    return density


def _sortable(scores: Tensor, name: str) -> Tensor:
    """The scores in a dtype that torch selects and sorts in, exactly; raises ValueError where one is NaN."""
    scores = scores.detach()
    if not scores.is_floating_point():
        return scores if scores.dtype == torch.int64 else scores.to(torch.int64)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if bool(scores.isnan().any()):
        raise ValueError(f"{name} must not contain NaN (shape {list(scores.shape)})")
    return scores


def _channel_flags(channels: Tensor | None, size: int, name: str, device: torch.device) -> Tensor:
    if channels is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    if not isinstance(channels, Tensor) or channels.is_floating_point() or channels.is_complex():
        raise TypeError(f"{name} must be a bool or integer tensor, got {describe(channels)}")
    if channels.device != device:
        raise ValueError(f"out and inp must be on one device, got {device} and {channels.device}")
    if channels.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {list(channels.shape)}")
    if channels.dtype == torch.bool:
        if channels.shape[0] != size:
            raise ValueError(f"{name} must have length {size}, got {channels.shape[0]}")
        return channels
    if channels.numel() and not (int(channels.min()) >= 0 and int(channels.max()) < size):
        raise IndexError(f"{name} has an index outside 0..{size - 1}")
    flags = torch.zeros(size, dtype=torch.bool, device=channels.device)
    flags[channels.long()] = True
    return flags
