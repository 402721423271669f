"""Thousands of steps of every kind of layer, of masks that change and of plans: memory stays where it is.

Each in a process of its own: what other tests have freed would hold a leak, and no page more.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from maskfuse import Mask, protect
from maskfuse.nn import CompactLinear, GatedLinear, MaskedConv2d, MaskedLinear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS, WARM_UP = 10_000, 1_500
GROWTH = 400 << 10  # bytes; 80 bytes a step are 680 KB


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def growth(step):
    """Bytes, and tensors, that there are more of after the steps than after some of them: the allocator's caches, and
    what is made once, are full by then."""
    for _ in range(WARM_UP):
        step()
    tensors, before = live_tensors(), resident()
    for _ in range(STEPS - WARM_UP):
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


def leaking(kept):
    return lambda: kept.append(bytearray(100))


def leaking_tensors(kept):
    return lambda: kept.append(torch.empty(0))


LAYERS = {make.__name__: make for make in (masked, conv, compact, gated, masks_set_and_packed, compact_masks_set)}
LEAKS = {make.__name__: make for make in (leaking, leaking_tensors)}


def growth_of(name):
    """The growth of a case, in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more would wait for each other on a busy machine
    command = [sys.executable, __file__, name]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_memory_stays(name):
    more, tensors = growth_of(name)
    assert tensors == 0
    assert more < GROWTH, f"{more / 1024:.0f} KiB more after {STEPS} steps"


def test_a_leak_is_seen():
    """Of a hundred bytes a step, and of a tensor."""
    assert growth_of("leaking")[0] > GROWTH
    assert growth_of("leaking_tensors")[1] == STEPS - WARM_UP


def main(name):
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would come at a time of their own
    torch.manual_seed(0)
    make = LAYERS.get(name) or (lambda: LEAKS[name]([]))
    print(json.dumps(growth(make())))


if __name__ == "__main__":
    main(sys.argv[1])
