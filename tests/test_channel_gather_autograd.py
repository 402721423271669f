"""Derivatives of channel_gather and channel_scatter, and what torch.func makes of them."""

from __future__ import annotations

import pytest
import torch
from conftest import thorough
from layouts import LAYOUTS, UNIQUE
from maskfuse import channel_gather, channel_scatter, reference
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vjp, vmap
from torch.library import opcheck


def leaf(*shape, layout="contiguous"):
    return LAYOUTS[layout](torch.randn(*shape, dtype=torch.float64)).requires_grad_()


INDICES = {
    "shared": (torch.tensor([2, 0, 2]), None),
    "batch": (torch.tensor([2, 0]), torch.tensor([1, 1, 0])),
    "per sample": (torch.tensor([[2, 0], [1, 1]]), None),
    "per sample and batch": (torch.tensor([[2, 0], [1, 1], [3, -1]]), torch.tensor([1, 1, 0])),
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
