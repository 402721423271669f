"""Checks of the ops that move channels: nothing but moves and sums of few whole numbers, so every bit is compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .compare import Operands, equal

_SAMPLES, _CHANNELS = 5, 37


def _inputs(o: Operands, samples: int, channels: int) -> Iterator[Tensor]:
    """Activations of several sizes of element, in both memory formats and without trailing dimensions."""
    yield o.whole(samples, channels, 7, 5, dtype=torch.float32)
    yield o.whole(samples, channels, 8, 6, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    yield o.whole(samples, channels, 3, 3, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    yield o.whole(samples, channels, dtype=torch.float16)
    yield o.whole(samples, channels, 16, dtype=torch.float64)
    yield o.whole(samples, channels, 11, dtype=torch.int8)


def _indices(o: Operands) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Channels and samples: an index for all samples, negative entries, one for each sample, and of some samples."""
    some = o.order(_SAMPLES)[:3]
    yield o.order(_CHANNELS)[:19], None
    yield (o.order(_CHANNELS)[:23] - _CHANNELS).to(torch.int32), some
    yield torch.stack([o.order(_CHANNELS)[:9] for _ in range(_SAMPLES)]), None
    yield torch.stack([o.order(_CHANNELS)[:33] for _ in range(3)]), some.to(torch.int32)


def channel_gather(ops: Any, device: torch.device) -> None:
    """`channel_gather` with each kind of index, one that repeats an entry among them."""
    o = Operands(device)
    for x in _inputs(o, _SAMPLES, _CHANNELS):
        for channels, batch in (*_indices(o), (torch.tensor([3, 3, 36, 0]), torch.tensor([4, 4, 0]))):
            rows = None if batch is None else batch.to(device)
            got = ops.channel_gather(x.to(device), channels.to(device), _CHANNELS, rows, _SAMPLES)
            equal("channel_gather", got, reference.channel_gather(x, channels, batch))


def channel_scatter(ops: Any, device: torch.device) -> None:
    """`channel_scatter` with each kind of index, and as the gradient of a gather that repeats entries."""
    o = Operands(device)
    for channels, batch in _indices(o):
        samples = _SAMPLES if batch is None else len(batch)
        for x in _inputs(o, samples, channels.shape[-1]):
            _scatter(ops, device, x, channels, batch, unique=True)
    twice, rows = torch.tensor([3, 3, 36, 0]), torch.tensor([4, 4, 0])
    for x in _inputs(o, len(rows), len(twice)):
        if x.is_floating_point():
            _scatter(ops, device, x, twice, rows, unique=False)


def _scatter(ops: Any, device: torch.device, x: Tensor, channels: Tensor, batch: Tensor | None, unique: bool) -> None:
    rows = None if batch is None else batch.to(device)
    got = ops.channel_scatter(x.to(device), channels.to(device), _CHANNELS, rows, _SAMPLES, unique)
    equal("channel_scatter", got, reference.channel_scatter(x, channels, _CHANNELS, batch, _SAMPLES))


def channel_select(ops: Any, device: torch.device) -> None:
    """`channel_select` and its gradient, with as many channels as the fullest sample has, more, and fewer."""
    o = Operands(device)
    flags = o.flags(_SAMPLES, _CHANNELS)
    flags[1], flags[2] = False, True
    for most in (_CHANNELS, _CHANNELS + 3, 11):
        for x in _inputs(o, _SAMPLES, _CHANNELS):
            got = ops.channel_select(x.to(device), flags.to(device), most)
            equal("channel_select", got, reference.channel_select(x, flags, most))
        for dy in _inputs(o, _SAMPLES, most):
            got = ops.channel_select_input_grad(dy.to(device), flags.to(device), most)
            equal("channel_select_input_grad", got, _select_input_grad(dy, flags, most))


def _select_input_grad(dy: Tensor, flags: Tensor, most: int) -> Tensor:
    """What came from each channel; 0 for those that were not selected."""
    want = torch.zeros((_SAMPLES, _CHANNELS, *dy.shape[2:]), dtype=dy.dtype)
    for sample, row in enumerate(flags):
        taken = row.nonzero().squeeze(1)[:most]
        want[sample, taken] = dy[sample, : len(taken)]
    return want
