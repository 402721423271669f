"""Operands of linear layers on a machine, and how results are compared."""

from __future__ import annotations

import torch
from conftest import assert_sums_close

# batch, in, out: smaller than a tile and than a vector, not whole tiles, some splits, large tiles.
SHAPES = [(1, 1, 1), (3, 7, 5), (17, 64, 40), (70, 130, 200), (33, 1000, 24), (260, 72, 392), (5, 2048, 136)]


def operands(shape, dtype, unaligned=False):
    batch, inp, out = shape
    make = torch.randn(batch + out, inp + 1 if unaligned else inp).to(dtype)
    if unaligned:
        make = make[:, 1:]
    return make[:batch], make[batch:], torch.randn(batch, out).to(dtype), torch.randn(out).to(dtype)


def on(machine, *tensors):
    return [None if t is None else t.to(machine.device) if t.is_contiguous() else spread(machine, t) for t in tensors]


def spread(machine, t):
    """The same values and strides on the machine's device, from a storage of the same offset."""
    base = torch.zeros(t.storage_offset() + 1 + sum((s - 1) * d for s, d in zip(t.shape, t.stride(), strict=True)))
    view = base.to(t.dtype).to(machine.device).as_strided(t.shape, t.stride(), t.storage_offset())
    return view.copy_(t)


def check(got, left, right, dtype, factor=None, bias=None, rounded=False, close=assert_sums_close):
    """`got` against left @ right.T in float64, times `factor`, plus `bias`."""
    want, magnitude = left.double() @ right.double().T, left.double().abs() @ right.double().abs().T
    if factor is not None:
        want, magnitude = want * factor.double(), magnitude * factor.double().abs()
    if bias is not None:
        want, magnitude = want + bias.double(), magnitude + bias.double().abs()
    close(got.cpu(), want, magnitude, dtype, left.shape[1] + 1, rounded)
