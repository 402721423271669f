"""Ctrl-C, or no memory, at any line of a plan's making, of set_mask and of pack: as before, or done."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from maskfuse import Mask, masked_linear
from maskfuse.nn import CompactLinear, MaskedLinear

OUT, IN = 130, 200


def leaves_block(frame):
    """Whether the line is a `with`, which is reported once more behind its block. No signal comes there: Python looks
    for them at calls and jumps, which are inside."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def interrupted_everywhere(make, act, check):
    """Interrupts `act(subject)` before the n-th line of the package that it runs, for every n, as a signal would; then
    checks the subject, lets the action run to its end, and checks that it did."""
    interrupts = 0
    while True:
        subject, lines = make(), 0

        def trace(frame, event, _, at=interrupts):
            nonlocal lines
            if "maskfuse" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
                return None
            if event == "line" and not leaves_block(frame):
                if lines == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                lines += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            act(subject)
        except KeyboardInterrupt:
            interrupts += 1
        else:
            assert interrupts > 3
            return
        finally:
            sys.settrace(before)
        check(subject)
        act(subject)
        check(subject)


def test_a_plan():
    bits = Mask.random((OUT, IN), 0.1).bits
    whole = Mask.from_bits(bits, (OUT, IN)).plan

    def check(mask):
        assert all(torch.equal(a, b) for a, b in zip(mask.plan, whole, strict=True)) and len(whole) == 2
        assert mask.structure == "unstructured" and not mask.known_full

    interrupted_everywhere(lambda: Mask.from_bits(bits, (OUT, IN)), lambda mask: mask.plan, check)


@pytest.mark.parametrize("retain", [False, True])
def test_set_mask(retain):
    """The layer has the old mask or the new one, computes with it, and knows whether the weight holds other values."""
    first, second = Mask.random((OUT, IN), 0.2), Mask.random((OUT, IN), 0.1)
    x = torch.randn(5, IN)

    def check(layer):
        assert layer.mask in (first, second)
        if not layer._retain:
            assert not layer.weight.detach()[~layer.mask.dense()].any()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), masked_linear(x, layer.weight, layer.mask, layer.bias))

    def act(layer):
        layer.set_mask(Mask.from_bits(second.bits, second.shape), retain=retain)
        assert layer.mask == second and layer._retain == retain

    interrupted_everywhere(lambda: MaskedLinear(IN, OUT, mask=first).eval().pack(), act, check)


def test_pack():
    mask, x = Mask.random((OUT, IN), 0.1), torch.randn(5, IN)

    def check(layer):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), masked_linear(x, layer.weight, mask, layer.bias))

    def act(layer):
        layer.pack()
        assert layer.packed_nbytes > 0

    interrupted_everywhere(lambda: MaskedLinear(IN, OUT, mask=mask).eval(), act, check)


def test_a_compact_layers_mask_where_a_moved_value_has_no_memory(monkeypatch):
    """All that moves is made before anything changes."""
    first, second = Mask.random((OUT, IN), 0.2), Mask.random((OUT, IN), 0.1)
    layer = CompactLinear.from_dense(torch.nn.Linear(IN, OUT), first)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(3, IN)).sum().backward()
    optimizer.step()
    before = [layer.values.detach().clone(), layer.values.grad.clone()]
    moments = {key: value.clone() for key, value in optimizer.state[layer.values].items()}
    made, failing, new_full = 0, 0, torch.Tensor.new_full

    def short(self, *arguments, **options):
        nonlocal made
        made += 1
        if made == failing:
            raise RuntimeError("not enough memory")
        return new_full(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "new_full", short)
    for at in range(1, 5):
        made, failing = 0, at
        with pytest.raises(RuntimeError, match="not enough memory"):
            layer.set_mask(second, optimizer)
        assert layer.mask == first
        assert torch.equal(layer.values, before[0]) and torch.equal(layer.values.grad, before[1])
        assert all(torch.equal(value, moments[key]) for key, value in optimizer.state[layer.values].items())
    monkeypatch.undo()
    layer.set_mask(second, optimizer)
    assert layer.mask == second and layer.values.shape == (second.active,)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_without_memory():
    """A process that is given little more than it has: MemoryError or RuntimeError, and with more, the result."""
    script = textwrap.dedent(
        """
        import resource, torch
        from maskfuse import Mask
        from maskfuse.nn import MaskedLinear

        def attempt(action, check):
            failed = False
            for more in [0, 1, 4, 16, 64, 1024]:
                size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + (more << 20), resource.RLIM_INFINITY))
                try:
                    result = action()
                except (MemoryError, RuntimeError) as error:
                    failed = True
                    assert any(word in str(error) for word in ("alloc", "memory", "API call failed")), error
                    continue
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                    check()
                return failed
            raise SystemExit("never had enough memory")

        torch.manual_seed(0)
        mask = Mask.random((2048, 2048), 0.3)
        assert attempt(lambda: mask.plan, lambda: mask.dense()), "the plan took no memory"
        assert len(mask.plan) == 2
        layer = MaskedLinear(2048, 2048, mask=mask)
        new = Mask.random((2048, 2048), 0.2)
        x = torch.randn(2, 2048)

        def check():
            assert layer.mask in (mask, new) and layer(x).isfinite().all()
            assert layer._retain or not layer.weight.detach()[~layer.mask.dense()].any()

        assert attempt(lambda: layer.set_mask(new), check), "set_mask took no memory"
        assert attempt(lambda: layer.pack(), check), "pack took no memory"
        assert layer.mask == new and layer.packed_nbytes > 0
        big = torch.randn(3000, 2048)
        assert attempt(lambda: layer(big), check), "a call took no memory"
        print("done")
        """
    )
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed has to be asked for again
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=given_back, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and process.stdout == "done\n", process.stderr[-2000:]
