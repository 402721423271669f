"""Thousands of steps of every kind of layer, of masks that change and of plans: memory stays where it is."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from maskfuse import Mask, protect
from maskfuse.nn import CompactLinear, GatedLinear, MaskedConv2d, MaskedLinear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS, WARM_UP = 10_000, 1_000
GROWTH = 400 << 10  # bytes; 80 bytes a step are 640 KB


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def growth(step, steps=STEPS):
    """Bytes, and tensors, that there are more of after the steps than after some of them: the allocator's caches, and
    what is made once, are full by then."""
    for _ in range(WARM_UP):
        step()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc have none
        ctypes.CDLL(None).malloc_trim(0)  # what tests before this one have freed is not there to be filled
    for _ in range(WARM_UP):
        step()
    tensors, before = live_tensors(), resident()
    for _ in range(steps - 2 * WARM_UP):
        step()
    return resident() - before, live_tensors() - tensors


def trained(layer, x):
    optimizer = protect(torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9), layer)

    def step():
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()

    return step


def masked():
    return trained(MaskedLinear(80, 60, mask=Mask.random((60, 80), 0.1)), torch.randn(4, 80))


def conv():
    return trained(MaskedConv2d(8, 8, 3, mask=Mask.random((8, 8, 3, 3), 0.3)), torch.randn(1, 8, 5, 5))


def compact():
    layer = CompactLinear.from_dense(torch.nn.Linear(80, 60), Mask.random((60, 80), 0.1))
    return trained(layer, torch.randn(4, 80))


def gated():
    return trained(GatedLinear(40, 30), torch.randn(4, 40))


def masks_set_and_packed():
    layer = MaskedLinear(80, 60).eval()
    masks = [Mask.random((60, 80), density) for density in (0.1, 0.2)]
    x, turn = torch.randn(2, 80), 0

    @torch.no_grad()
    def step():
        nonlocal turn
        turn = 1 - turn
        layer.set_mask(Mask.from_bits(masks[turn].bits, (60, 80)))  # and its plan
        layer.pack()
        layer(x)

    return step


def compact_masks_set():
    masks = [Mask.random((60, 80), 0.1), Mask.random((60, 80), 0.1)]
    layer = CompactLinear.from_dense(torch.nn.Linear(80, 60), masks[0])
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    layer(torch.randn(2, 80)).sum().backward()
    optimizer.step()
    turn = 0

    def step():
        nonlocal turn
        turn = 1 - turn
        layer.set_mask(masks[turn], optimizer)

    return step


@pytest.mark.slow
@pytest.mark.parametrize("make", [masked, conv, compact, gated, masks_set_and_packed, compact_masks_set])
def test_memory_stays(make):
    more, tensors = growth(make())
    assert tensors == 0
    assert more < GROWTH, f"{more / 1024:.0f} KiB more after {STEPS} steps"


def test_a_leak_is_seen():
    """Of some hundred bytes a step, which Python does not take from pools of its own, and of a tensor."""
    kept = []
    more, _ = growth(lambda: kept.append(bytearray(600)))
    assert more > GROWTH
    _, tensors = growth(lambda: kept.append(torch.empty(0)), steps=2 * WARM_UP + 5)
    assert tensors == 5
