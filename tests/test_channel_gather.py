"""channel_gather and channel_scatter against plain indexing: layouts, dtypes, selectors, repeats, threads."""

from __future__ import annotations

import pytest
import torch
from conftest import few, one_of
from layouts import ALL_DTYPES, LAYOUTS, SHAPES, C, N, check_same, expected_format, values
from maskfuse import channel_gather, channel_scatter


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
