"""channel_select against the reference, its gradient, and its shapes."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from conftest import DTYPES, few, one_of, thorough
from layouts import LAYOUTS, SHAPES, check_same, expected_format, values
from maskfuse import channel_scatter, channel_select
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.library import opcheck

N, C = 6, 19


def by_hand(x, mask, most):
    want = x.new_zeros(x.shape[0], most, *x.shape[2:])
    for n in range(x.shape[0]):
        active = mask[n].nonzero().flatten()[:most]
        want[n, : len(active)] = x[n, active]
    return want


def masks():
    some = torch.rand(N, C) > 0.6
    some[0], some[1] = False, True
    return some


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trailing", SHAPES)
def test_layouts_and_shapes(request, backend, trailing, layout):
    one_of(request, backend, 8)
    if not trailing and layout in ("every other column", "transposed"):
        pytest.skip("there is no column")
    mask = masks()
    for dtype in few(backend, torch.float32, torch.complex128, *DTYPES[1:], torch.int8, torch.bool, of=2):
        x = LAYOUTS[layout](values((N, C, *trailing), dtype))
        for most in few(backend, 7, None, 0, 1, C, C + 3):
            got, counts = channel_select(x, mask, most)
            check_same(got, by_hand(x, mask, C if most is None else most))
            assert (
                torch.equal(counts, mask.sum(1).clamp(max=C if most is None else most)) and counts.dtype == torch.int64
            )
            assert got.is_contiguous(memory_format=expected_format(layout, trailing))


def test_largest_count(backend):
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]]).bool()
    got, counts = channel_select(x, mask)
    assert got.shape == (2, 2, 3) and counts.tolist() == [2, 1] and not got[1, 1].any()
    assert torch.equal(got[0], x[0, [0, 3]]) and torch.equal(got[1, 0], x[1, 1])
    got, counts = channel_select(x, torch.zeros_like(mask))
    assert got.shape == (2, 0, 3) and counts.tolist() == [0, 0]


def test_scattered_back(backend):
    """An equal number of channels a sample, as after top-k, goes back with channel_scatter."""
    x = torch.randn(4, 9, 3, 3)
    top = torch.rand(4, 9).topk(3).indices.sort().values
    mask = torch.zeros(4, 9, dtype=torch.bool).scatter(1, top, True)
    got, _ = channel_select(x, mask, 3)
    assert torch.equal(channel_scatter(got, top, 9), x * mask[:, :, None, None])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0)])
def test_empty(backend, shape):
    x = torch.zeros(shape, requires_grad=True)
    mask = torch.ones(shape[:2], dtype=torch.bool)
    for most in (None, 0, 2):
        got, counts = channel_select(x, mask, most)
        assert got.shape[2:] == shape[2:] and counts.shape == shape[:1]
        (g,) = torch.autograd.grad(got.sum(), x)
        assert g.shape == x.shape and not g.any()


@pytest.mark.parametrize("most", [None, 2, 9])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients(backend, most, layout):
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    x = LAYOUTS[layout](torch.randn(3, 4, 2, 2, dtype=torch.float64)).requires_grad_()
    first, second = ({how: True, **thorough(backend)} for how in ("check_forward_ad", "check_fwd_over_rev"))
    assert gradcheck(lambda x: channel_select(x, mask, most)[0], x, **first)
    assert gradgradcheck(lambda x: channel_select(x, mask, most)[0].pow(2), x, **second)


def test_opcheck():
    ops, mask = torch.ops.maskfuse, torch.rand(3, 4) > 0.5
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(3, 4, 2, 2, dtype=torch.float64)).requires_grad_()
        for most in (0, 2, 6):
            opcheck(ops.channel_select.default, (x, mask, most))
            y = ops.channel_select(x.detach(), mask, most).requires_grad_()
            opcheck(ops.channel_select_input_grad.default, (y, mask, most))


def test_func_transforms():
    x, mask = torch.randn(3, 4, 2), torch.rand(3, 4) > 0.5

    def ours(x):
        return channel_select(x, mask, 3)[0].pow(3)

    def theirs(x):
        return by_hand(x, mask, 3).pow(3)

    many, t = torch.randn(5, *x.shape), torch.randn_like(x)
    g = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(theirs(g).sum(), g)
    torch.testing.assert_close(grad(lambda x: ours(x).sum())(x), want)
    torch.testing.assert_close(vmap(ours)(many), torch.stack([theirs(x) for x in many]))
    torch.testing.assert_close(jvp(ours, (x,), (t,))[1], 3 * by_hand(x, mask, 3).pow(2) * by_hand(t, mask, 3))
    per_mask = torch.rand(5, 3, 4) > 0.5
    got = vmap(lambda m: channel_select(x, m, 3)[0])(per_mask)
    assert torch.equal(got, torch.stack([by_hand(x, m, 3) for m in per_mask]))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler):
    torch._dynamo.reset()
    x = torch.randn(3, 4, 5, 5, requires_grad=True)

    def gate(x):
        values, counts = channel_select(x, x.mean((2, 3)) > 0, 3)
        return values.pow(2), counts

    compiled = torch.compile(gate, fullgraph=True, backend=compiler)
    for eager, traced in zip(gate(x), compiled(x), strict=True):
        torch.testing.assert_close(eager, traced)
    torch.testing.assert_close(*(torch.autograd.grad(f(x)[0].sum(), x)[0] for f in (gate, compiled)))


X, M = torch.randn(3, 8, 2), torch.ones(3, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: channel_select(1, M), TypeError, "input must be a tensor, got int"),
        (lambda: channel_select(X[0, 0], M), ValueError, r"input must have shape \[N, C, ...\]"),
        (
            lambda: channel_select(X, M.int()),
            TypeError,
            r"mask must be a bool tensor \[N, C\], got int32 tensor \[3, 8\]",
        ),
        (lambda: channel_select(X, slice(3)), TypeError, r"mask must be a bool tensor \[N, C\], got slice"),
        (
            lambda: channel_select(X, M[0]),
            ValueError,
            r"mask must have shape \[3, 8\] for input float32.*bool tensor \[8\]",
        ),
        (lambda: channel_select(X, M.to("meta")), ValueError, "mask and input must be on one device, got meta and cpu"),
        (lambda: channel_select(X, M, -1), ValueError, "max_channels must be at least 0, got -1"),
        (lambda: channel_select(X, M, 2.0), TypeError, "max_channels must be an int, got float"),
        (
            lambda: maskfuse.ops.channel_select(X, M[:2], 2),
            RuntimeError,
            r"mask must have shape \[3, 8\], got \[2, 8\]",
        ),
        (lambda: maskfuse.ops.channel_select(X, M.int(), 2), RuntimeError, "mask must be Bool, got Int"),
        (
            lambda: maskfuse.ops.channel_select_input_grad(X, M, 2),
            RuntimeError,
            r"grad must have 2 channels and mask a row a sample, got \[3, 8, 2\] and \[3, 8\]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
