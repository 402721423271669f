"""channel_gather and channel_scatter compiled, exported, on meta, and what they allocate."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from layouts import LAYOUTS, UNIQUE
from maskfuse import channel_gather, channel_scatter


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kind", UNIQUE)
def test_compile(compiler, kind):
    torch._dynamo.reset()
    c, b = UNIQUE[kind]

    def step(x, c, b):
        y = channel_gather(x, c, b)
        return y, channel_scatter(y.pow(2), c, 4, b, x.shape[0])

    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(2 if b is None else 3, 4, 3, 3)).requires_grad_()
        for eager, traced in zip(step(x, c, b), compiled(x, c, b), strict=True):
            assert torch.equal(eager, traced) and eager.stride() == traced.stride()
            one, other = (torch.autograd.grad(t.pow(2).sum(), x, retain_graph=True)[0] for t in (eager, traced))
            torch.testing.assert_close(one, other)
    compiled(torch.randn(3, 4, 5, 5), torch.tensor([1]), torch.tensor([2]))


def test_compile_with_sizes_that_change():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, c: channel_scatter(channel_gather(x, c), c, x.shape[1]), fullgraph=True, backend=counter, dynamic=True
    )
    for n in (3, 4, 6):
        x, c = torch.randn(n, n + 3, n, n, requires_grad=True), torch.randperm(n + 3)[:n]
        y = compiled(x, c)
        y.sum().backward()
        assert torch.equal(y[:, c], x[:, c]) and torch.equal(x.grad[:, c], torch.ones_like(x[:, c]))
    assert counter.frame_count == 1


def test_compile_with_a_slice_and_with_a_mask():
    torch._dynamo.reset()
    x, m = torch.randn(2, 6, 3), torch.tensor([True, False, True, False, False, True])
    compiled = torch.compile(lambda x: channel_gather(x, slice(1, 4)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), x[:, 1:4])
    compiled = torch.compile(lambda x, m: channel_gather(x, m), backend="aot_eager")
    assert torch.equal(compiled(x, m), x[:, m])


def test_compile_raises_when_it_runs():
    torch._dynamo.reset()
    compiled = torch.compile(channel_gather, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"channels \[1\] has index 4, out of range for 4"):
        compiled(torch.randn(2, 4, 3), torch.tensor([4]))
    compiled = torch.compile(channel_scatter, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"channels \[2\] has an index twice"):
        compiled(torch.randn(2, 2, 3), torch.tensor([3, 3]), 4)


def test_export():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("c", torch.tensor([5, 2, 3]))

        def forward(self, x):
            return channel_gather(x, self.c)

    x = torch.randn(2, 6, 3)
    program = torch.export.export(Half(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    x = torch.randn(7, 6, 3)
    assert torch.equal(program.module()(x), x[:, [5, 2, 3]])


def test_meta():
    x = torch.empty(2, 6, 3, device="meta")
    assert channel_gather(x, torch.empty(4, dtype=torch.long, device="meta")).shape == (2, 4, 3)


def test_large_result_in_parallel():
    """Sizes at which results are mapped anew and threads share the work."""
    x = torch.randn(8, 96, 128, 128)
    c = torch.randperm(96)[:90]
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](x)
        y = channel_gather(x, c)
        assert torch.equal(y, x[:, c])
        want = torch.zeros_like(x)
        want[:, c] = y
        assert torch.equal(channel_scatter(y, c, 96), want)


def test_no_intermediate_copy():
    """A slice beside an index is one pass, too: nothing as large as the slice of the input is allocated."""
    code = textwrap.dedent("""
        import torch
        from torch.profiler import ProfilerActivity, profile
        from maskfuse import channel_gather, channel_scatter
        x, c, b = torch.randn(8, 64, 16, 16), torch.tensor([3, 1]), torch.tensor([5, 2])
        for call in (lambda: channel_gather(x, c, slice(0, 6)), lambda: channel_gather(x, slice(0, 60), b),
                     lambda: channel_gather(x, c, b)):
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
                y = call()
            gained = sum(max(0, e.self_cpu_memory_usage) for e in p.key_averages())
            print(gained, y.numel() * 4)
    """)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(lines) == 3
    for gained, result in lines:
        assert result <= gained <= result + 4096, lines
