"""Activations in every layout and dtype, and how results are compared."""

from __future__ import annotations

import torch
from conftest import DTYPES

ALL_DTYPES = [
    *DTYPES,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]
N, C = 5, 19


def values(shape, dtype):
    """Every element another one, as far as the dtype has so many."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return (
            torch.randn(shape, dtype=torch.complex128).to(dtype) if dtype.is_complex else torch.randn(shape).to(dtype)
        )
    return torch.randperm(count).reshape(shape).to(dtype)


def transposed(t):
    return t.transpose(1, -1).contiguous().transpose(1, -1)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim(), torch.contiguous_format)
    ),
    "every other channel": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every other channel of channels_last": lambda t: LAYOUTS["channels_last"](t.repeat_interleave(2, 1))[:, ::2],
    "every other sample of channels_last": lambda t: LAYOUTS["channels_last"](t.repeat_interleave(2, 0))[::2],
    "every other column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "transposed": transposed,
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand_as(t),
}
SHAPES = [(), (1,), (3,), (1, 1), (2, 2), (3, 5), (7, 7), (16, 17), (2, 3, 2), (1, 1, 1)]


def check_same(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.equal(got, want)


def expected_format(layout, trailing):
    if layout.endswith("channels_last") and len(trailing) in (2, 3) and max(trailing) > 1:
        return torch.channels_last if len(trailing) == 2 else torch.channels_last_3d
    return torch.contiguous_format


UNIQUE = {
    "shared": (torch.tensor([2, 0]), None),
    "batch": (torch.tensor([2, 0]), torch.tensor([1, 2])),
    "per sample": (torch.tensor([[2, 0], [1, -1]]), None),
    "per sample and batch": (torch.tensor([[2, 0], [1, -1]]), torch.tensor([1, -1])),
}
