"""channel_gather and channel_scatter against plain indexing, and what they promise beside the numbers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import DTYPES, few, one_of, thorough
from maskfuse import channel_gather, channel_scatter, reference
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vjp, vmap
from torch.library import opcheck

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


def selectors(size, kind):
    return {
        "sorted": lambda: torch.randperm(size)[: size // 2].sort().values,
        "unsorted": lambda: torch.randperm(size)[: size // 2],
        "negative": lambda: torch.randperm(size)[: size // 2] - size,
        "int32": lambda: torch.randperm(size)[: size // 2].int(),
        "uint8": lambda: torch.randperm(size)[: size // 2].to(torch.uint8),
        "uint64": lambda: torch.randperm(size)[: size // 2].to(torch.uint64),
        "run": lambda: torch.arange(1, size // 2),
        "strided": lambda: torch.randperm(size).repeat_interleave(2)[::2][: size // 2],
        "bool": lambda: torch.rand(size) > 0.5,
        "nothing": lambda: torch.zeros(0, dtype=torch.long),
        "all": lambda: torch.arange(size),
        "slice": lambda: slice(1, None, 2),
        "range": lambda: range(-3, 0),
    }[kind]()


CHANNELS = ["sorted", "unsorted", "negative", "int32", "uint8", "uint64", "run", "strided", "bool", "nothing", "all"]
BATCHES = [None, "unsorted", "bool", "nothing", "slice", "range"]


def listed(selector, size):
    """The entries that a selector names, by Python's own rules."""
    if selector is None:
        return torch.arange(size)
    if isinstance(selector, (slice, range)):
        return torch.tensor([i % size for i in (range(size)[selector] if isinstance(selector, slice) else selector)])
    return selector.nonzero().flatten() if selector.dtype == torch.bool else selector.long()


def check_same(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.equal(got, want)


def expected_format(layout, trailing):
    if layout.endswith("channels_last") and len(trailing) in (2, 3) and max(trailing) > 1:
        return torch.channels_last if len(trailing) == 2 else torch.channels_last_3d
    return torch.contiguous_format


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trailing", SHAPES)
def test_layouts_and_shapes(request, backend, trailing, layout):
    one_of(request, backend, 10)
    if not trailing and layout in ("every other column", "transposed"):
        pytest.skip("there is no column")
    for dtype in few(backend, torch.float32, torch.int8, torch.float64):
        x = LAYOUTS[layout](values((N, C, *trailing), dtype))
        c, b = torch.randperm(C)[:7], torch.tensor([3, 0, 4])
        rows = torch.stack([torch.randperm(C)[:7] for _ in range(3)])
        for got, want in (
            (channel_gather(x, c), x[:, c]),
            (channel_gather(x, c, b), x[b][:, c]),
            (channel_gather(x, rows, b), x[b[:, None], rows]),
        ):
            check_same(got, want)
            assert got.is_contiguous(memory_format=expected_format(layout, trailing))
        y = LAYOUTS[layout](values((3, 7, *trailing), dtype))
        for channels in (c, rows):
            got = channel_scatter(y, channels, C, b, N)
            want = y.new_zeros(N, C, *trailing)
            want[b[:, None], channels] = y
            check_same(got, want)
            assert got.is_contiguous(memory_format=expected_format(layout, trailing))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dtypes(request, backend, dtype, layout):
    one_of(request, backend, 6)
    for trailing in ((), (1, 1), (1, 2), (3, 3), (9, 9)):
        x = LAYOUTS[layout](values((N, C, *trailing), dtype))
        c, b = torch.randperm(C)[:7], torch.tensor([3, 0, 4, 3])
        check_same(channel_gather(x, c, b), x[b][:, c])
        y = channel_gather(x, c)
        want = torch.zeros_like(x)
        want[:, c] = y
        check_same(channel_scatter(y, c, C), want)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_selectors(request, backend, channels, batch, layout):
    one_of(request, backend, 10)
    x = LAYOUTS[layout](values((N, C, 3, 3), torch.float32))
    c, b = selectors(C, channels), None if batch is None else selectors(N, batch)
    rows, columns = listed(b, N), listed(c, C)
    y = channel_gather(x, c, b)
    check_same(y, x[rows][:, columns])
    assert y._base is None and y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    back = channel_scatter(y, c, C, b, N)
    want = torch.zeros_like(x)
    want[rows[:, None], columns] = y
    check_same(back, want)
    check_same(channel_gather(back, c, b), y)


@pytest.mark.parametrize(
    "channels", [slice(None), slice(2, None, 3), slice(-4, -1), slice(5, 2), range(4), range(-3, 0)]
)
@pytest.mark.parametrize("batch", [None, slice(1, 4), range(0, 5, 2), torch.tensor([4, 1])])
def test_slices_and_ranges(backend, channels, batch):
    x = values((N, C, 2, 3), torch.float32)
    rows, columns = listed(batch, N), listed(channels, C).long()
    y = channel_gather(x, channels, batch)
    check_same(y, x[rows][:, columns])
    assert (y._base is x) == (not isinstance(batch, torch.Tensor))  # a view, or no view, whatever it names
    want = torch.zeros_like(x)
    want[rows[:, None], columns] = y
    check_same(channel_scatter(y, channels, C, batch, N), want)


def test_views_write_through():
    x = torch.zeros(2, 4, 3)
    channel_gather(x, range(1, 3)).fill_(1)
    channel_gather(x, torch.tensor([0])).fill_(2)
    assert torch.equal(x[:, :, 0], torch.tensor([[0.0, 1, 1, 0]] * 2))


def test_all_channels_by_index_is_a_copy():
    x = torch.zeros(2, 4, 3)
    for channels in (torch.arange(4), torch.ones(4, dtype=torch.bool)):
        channel_gather(x, channels).fill_(1)
    assert not x.any()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3), (0, 0), (2, 4, 3, 0, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty(backend, shape, layout):
    x = LAYOUTS[layout](torch.zeros(shape)).requires_grad_()
    c = torch.arange(shape[1]) if shape[1] == 0 else torch.tensor([2, 0, 2])
    y = channel_gather(x, c)
    assert y.shape == (shape[0], len(c), *shape[2:])
    y.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()
    rows = torch.zeros(shape[0], 0, dtype=torch.int32)
    assert channel_gather(x, rows).shape == (shape[0], 0, *shape[2:])
    assert channel_gather(x, c, torch.zeros(0, dtype=torch.long)).shape == (0, len(c), *shape[2:])
    back = channel_scatter(x, torch.arange(shape[1]), 6, torch.arange(shape[0]), 3)
    assert back.shape == (3, 6, *shape[2:]) and not back.any()


def test_nothing_selected_gives_zero_gradients(backend):
    x = torch.randn(N, C, 3, requires_grad=True)
    (g,) = torch.autograd.grad(channel_gather(x, torch.zeros(C, dtype=torch.bool)).sum(), x)
    assert g.shape == x.shape and not g.any()
    y = torch.randn(N, 0, 3, requires_grad=True)
    out = channel_scatter(y, torch.zeros(0, dtype=torch.long), C)
    assert out.shape == (N, C, 3) and not out.any()
    assert torch.autograd.grad(out.sum(), y)[0].shape == y.shape


def test_conjugate_and_negative_views(backend):
    x = torch.randn(N, C, 3, dtype=torch.complex64)
    c = torch.tensor([3, 1])
    check_same(channel_gather(x.conj(), c), x.conj()[:, c].resolve_conj())
    check_same(channel_gather(x.conj().imag, c), x.conj().imag[:, c].resolve_neg())


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_repeats_are_added(dtype, layout):
    """The op, which the gradient of a gather is. Half types are added in float32, and rounded once."""
    y = LAYOUTS[layout](values((4, 6, 3, 3), dtype))
    b, size = torch.tensor([2, 0, 2, 1]), (3, 5)
    for channels in (torch.tensor([4, 1, 1, 0, 4, 1]), torch.randint(5, (4, 6))):
        got = torch.ops.maskfuse.channel_scatter(y, channels, size[1], b, size[0], False)
        wide = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.bool: torch.int64}.get(dtype, dtype)
        want = torch.zeros(*size, 3, 3, dtype=wide)
        for j in range(4):
            for k in range(6):
                want[b[j], channels.expand(4, 6)[j, k]] += y[j, k].to(wide)
        check_same(got, want.to(dtype))


def test_one_addend_keeps_its_bits():
    """A channel that is named once is copied, not added to zero, beside others that are added."""
    y = torch.full((1, 3, 2), -0.0)
    got = torch.ops.maskfuse.channel_scatter(y, torch.tensor([0, 1, 1]), 2, None, 1, False)
    assert torch.signbit(got).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_do_not_change_bits(layout):
    x = LAYOUTS[layout](torch.randn(16, 64, 20, 20)).requires_grad_()
    c, b = torch.randint(64, (40,)), torch.randint(16, (24,))
    per_sample = torch.randint(64, (24, 40))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for channels in (c, per_sample):
                y = channel_gather(x, channels, b)
                (g,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view_as(y) / 3)
                results.append((y.detach(), g))
    finally:
        torch.set_num_threads(before)
    for i, (y, g) in enumerate(results):
        assert torch.equal(y, results[i % 2][0]) and torch.equal(g, results[i % 2][1])


# Derivatives


def leaf(*shape, layout="contiguous"):
    return LAYOUTS[layout](torch.randn(*shape, dtype=torch.float64)).requires_grad_()


INDICES = {
    "shared": (torch.tensor([2, 0, 2]), None),
    "batch": (torch.tensor([2, 0]), torch.tensor([1, 1, 0])),
    "per sample": (torch.tensor([[2, 0], [1, 1]]), None),
    "per sample and batch": (torch.tensor([[2, 0], [1, 1], [3, -1]]), torch.tensor([1, 1, 0])),
}
UNIQUE = {
    "shared": (torch.tensor([2, 0]), None),
    "batch": (torch.tensor([2, 0]), torch.tensor([1, 2])),
    "per sample": (torch.tensor([[2, 0], [1, -1]]), None),
    "per sample and batch": (torch.tensor([[2, 0], [1, -1]]), torch.tensor([1, -1])),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", INDICES)
def test_gradients(backend, kind, layout):
    c, b = INDICES[kind]
    x = leaf(2, 4, 2, 2, layout=layout)
    first, second = ({how: True, **thorough(backend)} for how in ("check_forward_ad", "check_fwd_over_rev"))
    assert gradcheck(lambda x: channel_gather(x, c, b), x, **first)
    assert gradgradcheck(lambda x: channel_gather(x, c, b).pow(2), x, **second)
    c, b = UNIQUE[kind]
    y = leaf(2, 2, 2, 2, layout=layout)
    size = 2 if b is None else 3
    assert gradcheck(lambda y: channel_scatter(y, c, 4, b, size), y, **first)
    assert gradgradcheck(lambda y: channel_scatter(y, c, 4, b, size).pow(2), y, **second)


def test_gradient_keeps_nothing_of_the_input():
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    c = torch.tensor([1, 2])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        channel_gather(x, c)
    assert kept == [2]


def test_complex_gradients():
    x = torch.randn(2, 4, 3, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(lambda x: channel_gather(x, torch.tensor([1, 1, 3])), x, check_forward_ad=True)
    with forward_ad.dual_level():
        tangent = torch.randn_like(x)
        out = channel_gather(forward_ad.make_dual(x.detach(), tangent), torch.tensor([1, 1, 3]))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, tangent[:, [1, 1, 3]])


def test_integers_have_no_gradient():
    y = channel_gather(torch.arange(12).view(1, 4, 3), torch.tensor([1]))
    assert not y.requires_grad


@pytest.mark.parametrize("kind", INDICES)
def test_opcheck(kind):
    ops = torch.ops.maskfuse
    for layout in ("contiguous", "channels_last", "every other channel of channels_last"):
        c, b = INDICES[kind]
        x = LAYOUTS[layout](torch.randn(2, 4, 3, 3, dtype=torch.float64)).detach().requires_grad_()
        opcheck(ops.channel_gather.default, (x, c, 4, b, 2))
        y = ops.channel_gather(x.detach(), c, 4, b, 2)
        opcheck(ops.channel_scatter.default, (LAYOUTS[layout](y).requires_grad_(), c, 4, b, 2, False))
        opcheck(ops.channel_gather.default, (x[:, :, :0], c, 4, b, 2))
        opcheck(ops.channel_gather.default, (x[:, :, :0], c[..., :0], 4, b, 2))
    opcheck(ops.channel_scatter.default, (leaf(2, 2, 3), torch.tensor([3, 1]), 4, None, 2, True))


@pytest.mark.parametrize("kind", UNIQUE)
def test_func_transforms(backend, kind):
    c, b = UNIQUE[kind]
    x = torch.randn(2 if b is None else 3, 4, 3, dtype=torch.float64)
    size = x.shape[0]

    def ours(x):
        return channel_scatter(channel_gather(x, c, b).pow(3), c, 4, b, size)

    def theirs(x):
        y = reference.channel_gather(x, c, b).pow(3)
        return reference.channel_scatter(y, c, 4, b, size)

    t, many = torch.randn_like(x), torch.randn(3, *x.shape, dtype=x.dtype)
    cases = (
        lambda f: grad(lambda x: f(x).sum())(x),
        lambda f: grad(lambda x: grad(lambda x: f(x).sum())(x).pow(2).sum())(x),
        lambda f: vjp(f, x)[1](t)[0],
        lambda f: jvp(f, (x,), (t,))[1],
        lambda f: jvp(grad(lambda x: f(x).sum()), (x,), (t,))[1],
        lambda f: vmap(f)(many),
        lambda f: vmap(f, 2, 1)(many.movedim(0, 2)),
        lambda f: vmap(grad(lambda x: f(x).sum()))(many),
        lambda f: vmap(vmap(f))(many.expand(2, *many.shape)),
    )
    for i, case in enumerate(cases):
        torch.testing.assert_close(case(ours), case(theirs), msg=lambda text, i=i: f"case {i}: {text}")


def test_vmap_over_indices():
    x = torch.randn(3, 4, 2)
    many = torch.stack([torch.randperm(4)[:2] for _ in range(5)])
    want = torch.stack([x[:, c] for c in many])
    assert torch.equal(vmap(channel_gather, (None, 0))(x, many), want)
    stacked = torch.randn(5, 3, 4, 2)
    assert torch.equal(
        vmap(channel_gather)(stacked, many), torch.stack([s[:, c] for s, c in zip(stacked, many, strict=True)])
    )
    assert vmap(channel_gather, (None, 0))(x, many[:0]).shape == (0, 3, 2, 2)
    assert vmap(channel_gather, (0, None))(stacked[:0], many[0]).shape == (0, 3, 2, 2)


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


X, Y = torch.randn(3, 8, 2), torch.randn(3, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: channel_gather([1], torch.tensor([0])), TypeError, "input must be a tensor, got list"),
        (lambda: channel_gather(X[0, 0], torch.tensor([0])), ValueError, r"input must have shape \[N, C, ...\].*\[2\]"),
        (lambda: channel_gather(X, [0, 1]), TypeError, "channels must be a slice, a range or a tensor, got list"),
        (lambda: channel_gather(X, None), TypeError, "channels must be a slice.*NoneType"),
        (lambda: channel_gather(X, 3), TypeError, "channels must be a slice.*int"),
        (
            lambda: channel_gather(X, torch.tensor([0.5])),
            TypeError,
            r"channels must be bool or integers.*float32.*\[1\]",
        ),
        (lambda: channel_gather(X, torch.tensor(1)), ValueError, r"channels must have shape \[K\] or \[B, K\].*\[\]"),
        (lambda: channel_gather(X, torch.zeros(1, 1, 1).long()), ValueError, r"channels must have.*\[1, 1, 1\]"),
        (
            lambda: channel_gather(X, torch.ones(7, dtype=torch.bool)),
            ValueError,
            r"bool channels must have shape \[8\], got bool tensor \[7\]$",
        ),
        (lambda: channel_gather(X, torch.ones(3, 8, dtype=torch.bool)), ValueError, "channel_select takes a mask"),
        (
            lambda: channel_gather(X, torch.tensor([0, 8])),
            IndexError,
            r"channels has index 8, out of range for size 8: channels is int64 tensor \[2\], "
            r"input is float32 tensor \[3, 8, 2\]",
        ),
        (lambda: channel_gather(X, torch.tensor([0, -9], dtype=torch.int32)), IndexError, "index -9.*int32"),
        (lambda: channel_gather(X, torch.tensor([-(2**63)])), IndexError, "index -9223372036854775808"),
        (lambda: channel_gather(X, torch.tensor([2**63 + 1], dtype=torch.uint64)), IndexError, "channels has index"),
        (lambda: channel_gather(X, torch.tensor([2**32])), IndexError, "index 4294967296"),
        (lambda: channel_gather(X, torch.tensor([0]), torch.tensor([3])), IndexError, "batch has index 3.*size 3"),
        (lambda: channel_gather(X, torch.tensor([0]), torch.zeros(1, 1).long()), ValueError, r"batch must.*\[B\]"),
        (lambda: channel_gather(X, torch.tensor([0]), 1), TypeError, "batch must be a slice, a range or a tensor"),
        (lambda: channel_gather(X, torch.zeros(2, 1).long()), ValueError, r"\[K\] or \[3, K\] for 3 samples.*\[2, 1\]"),
        (
            lambda: channel_gather(X, torch.zeros(3, 1).long(), torch.tensor([0])),
            ValueError,
            r"\[K\] or \[1, K\] for 1 samples.*\[3, 1\]",
        ),
        (lambda: channel_gather(X, range(9)), IndexError, r"channels is range\(0, 9\), out of range for size 8"),
        (lambda: channel_gather(X, range(-9, -1)), IndexError, "out of range for size 8"),
        (lambda: channel_gather(X, range(-1, 2)), ValueError, "must not run from negative"),
        (lambda: channel_gather(X, range(3, 0, -1)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None, None, -1)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None, None, 0)), ValueError, "channels must have a positive step"),
        (lambda: channel_gather(X, slice(None), slice(3, 0, -1)), ValueError, "batch must have a positive step"),
        (
            lambda: channel_gather(X, torch.zeros(1, device="meta").long()),
            ValueError,
            "channels and input.*meta and cpu",
        ),
        (lambda: channel_scatter(Y, torch.tensor([1, 1]), 8), ValueError, "channels must name each.*index 1 twice"),
        (lambda: channel_scatter(Y, torch.tensor([7, -1]), 8), ValueError, "channels must name each.*index 7 twice"),
        (lambda: channel_scatter(Y, torch.tensor([[1, 2], [0, 1], [3, 3]]), 8), ValueError, "index 3 twice"),
        (lambda: channel_scatter(Y, torch.tensor([1, 8]), 8), IndexError, "channels has index 8"),
        (lambda: channel_scatter(Y, torch.tensor([1]), 8), ValueError, "channels must name as many channels.*2, got 1"),
        (lambda: channel_scatter(Y, slice(0, 3), 8), ValueError, "as many channels as input has, 2, got 3"),
        (lambda: channel_scatter(Y, torch.ones(8).bool(), 8), ValueError, "as many channels as input has, 2, got 8"),
        (lambda: channel_scatter(Y, torch.ones(7).bool(), 8), ValueError, r"bool channels must have shape \[8\]"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), 8.0), TypeError, "num_channels must be an int, got float"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), True), TypeError, "num_channels must be an int, got bool"),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), -8), ValueError, "num_channels must be at least 0, got -8"),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, batch_size=4),
            ValueError,
            "batch_size without batch.*3.*4",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 0])),
            ValueError,
            "batch_size is needed",
        ),
        (lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, slice(3)), ValueError, "batch_size is needed.*slice"),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 1]), 5),
            ValueError,
            r"batch must name each entry once, got index 1 twice: batch is int64 tensor \[3\], input is "
            r"float32 tensor \[3, 2, 2\]",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1, 2, 5]), 5),
            IndexError,
            "batch has index 5",
        ),
        (
            lambda: channel_scatter(Y, torch.tensor([1, 2]), 8, torch.tensor([1]), 5),
            ValueError,
            "as many samples.*3, got 1",
        ),
    ],
)
def test_bad_input(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


OPS = torch.ops.maskfuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 7, None, 3), r"3 samples of 7 channels, got \[3, 8, 2\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0.0]), 8, None, 3), "channels must be Int or Long, got Float"),
        (lambda: OPS.channel_gather(X[0, 0], torch.tensor([0]), 8, None, 3), r"shape \[samples, channels, ...\]"),
        (lambda: OPS.channel_gather(X, torch.zeros(2, 1).long(), 8, None, 3), r"\[3, channels\], got \[2, 1\]"),
        (lambda: OPS.channel_gather(X, torch.tensor(0), 8, None, 3), r"channels must have shape.*got \[\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 8, torch.tensor(0), 3), r"batch must have shape.*got \[\]"),
        (lambda: OPS.channel_gather(X, torch.tensor([0]), 8, torch.tensor([3]), 3), r"batch \[1\] has index 3"),
        (
            lambda: OPS.channel_scatter(Y, torch.tensor([0]), 8, None, 3, True),
            r"\[3, 2, 2\] does not fit channels \[1\]",
        ),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), 8, None, 4, True), r"4 samples, got \[3, 2, 2\]"),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), -1, None, 3, True), "num_channels must be at least 0"),
        (lambda: OPS.channel_scatter(Y, torch.tensor([0, 0]), 8, None, 3, True), r"channels \[2\] has an index twice"),
        (
            lambda: OPS.channel_scatter(Y, torch.tensor([0, 1]), 8, torch.tensor([1]), 3, True),
            r"batch must have shape \[3\]",
        ),
    ],
)
def test_bad_input_of_the_ops(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
