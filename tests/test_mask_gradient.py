"""mask_gradient: the input's bits forward, the mask backward, in every way to differentiate."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from conftest import DTYPES
from maskfuse import Mask, mask_gradient, reference
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap

SHAPE = (5, 7)
BINARY = ["Mask", "bool", "int64", "uint8"]
KINDS = [*BINARY, "floating"]


def mask_of(kind, shape=SHAPE, dtype=torch.float64):
    """(the mask as it is passed, as a tensor to multiply with)."""
    dense = torch.rand(shape) > 0.5
    factor = dense.to(dtype)
    if kind == "Mask":
        return Mask.from_dense(dense), factor
    if kind == "floating":
        factor = torch.randn(shape, dtype=dtype)
        return factor, factor
    return dense.to(getattr(torch, kind)), factor


def bits(t):
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def assert_bitwise(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(bits(got.detach()), bits(want.detach()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradient(kind, dtype):
    mask, factor = mask_of(kind, dtype=dtype)
    x = torch.randn(SHAPE, dtype=dtype)
    x[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, -float("inf")])
    x.requires_grad_()
    y = mask_gradient(x, mask)
    assert_bitwise(y, x)
    assert y is not x and y.data_ptr() == x.data_ptr()  # nothing is copied
    incoming = torch.randn(SHAPE, dtype=dtype)
    (got,) = torch.autograd.grad(y, x, incoming)
    assert_bitwise(got, incoming * factor if kind == "floating" else torch.where(factor != 0, incoming, 0))


@pytest.mark.parametrize("kind", BINARY)
def test_masked_entries_are_positive_zero_whatever_comes_in(kind):
    mask, factor = mask_of(kind)
    x = torch.randn(SHAPE, requires_grad=True)
    for value in (float("nan"), float("inf"), -float("inf"), -1.0, -0.0):
        incoming = torch.full(SHAPE, value)
        (got,) = torch.autograd.grad(mask_gradient(x, mask), x, incoming)
        assert_bitwise(got[factor == 0], torch.zeros(int((factor == 0).sum())))
        assert_bitwise(got[factor == 1], incoming[factor == 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_agrees_with_the_reference(shape, kind):
    mask, _ = mask_of(kind, shape)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(shape, dtype=torch.float64)
    y, want = mask_gradient(x, mask), reference.mask_gradient(x, mask)
    assert torch.equal(y, want)
    assert torch.equal(torch.autograd.grad(y, x, incoming)[0], torch.autograd.grad(want, x, incoming)[0])
    tangent = torch.randn(shape, dtype=torch.float64)
    got = jvp(lambda x: mask_gradient(x, mask), (x.detach(),), (tangent,))
    assert torch.equal(got[1], jvp(lambda x: reference.mask_gradient(x, mask), (x.detach(),), (tangent,))[1])


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.T.contiguous().T,
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
        lambda t: t[:1].expand(SHAPE),
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(SHAPE),
    ],
)
def test_strides(layout):
    mask, factor = mask_of("bool")
    x = layout(torch.randn(SHAPE, dtype=torch.float64)).requires_grad_()
    y = mask_gradient(x, layout(mask) if layout(mask).stride() != mask.stride() else mask)
    assert y.stride() == x.stride() and torch.equal(y, x)
    incoming = layout(torch.randn(SHAPE, dtype=torch.float64))
    kept = layout(factor) if layout(mask).stride() != mask.stride() else factor
    assert torch.equal(torch.autograd.grad(y, x, incoming)[0], torch.where(kept.bool(), incoming, 0))


def test_scalar():
    x = torch.tensor(2.0, requires_grad=True)
    for active in (False, True):
        assert torch.autograd.grad(mask_gradient(x, torch.tensor(active)), x)[0].item() == float(active)


@pytest.mark.parametrize("kind", ["Mask", "bool"])
def test_gradcheck_around_the_identity(kind):
    """Where only active entries count, finite differences see the derivative that is given."""
    mask, factor = mask_of(kind)

    def f(x):
        return (mask_gradient(x, mask) * factor).sin()  # what is masked contributes nothing, so both derivatives agree

    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert gradcheck(f, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_jacobian_product_is_differentiable(kind):
    """Backward is a function of the gradient that comes in, which finite differences do agree with."""
    mask, _ = mask_of(kind)
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)

    def backward(incoming):
        return torch.autograd.grad(mask_gradient(x, mask), x, incoming, create_graph=True)[0]

    incoming = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    assert gradcheck(backward, (incoming,))
    assert gradgradcheck(lambda v: backward(v).sin(), (incoming,))


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind):
    mask, factor = mask_of(kind)
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(mask_gradient(x, mask).pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 3 * x**2 * factor)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * x * factor * factor)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func(kind):
    mask, factor = mask_of(kind)
    x = torch.randn(SHAPE, dtype=torch.float64)
    want = 2 * x * factor

    def f(x):
        return mask_gradient(x, mask).pow(2).sum()

    torch.testing.assert_close(grad(f)(x), want)
    torch.testing.assert_close(vjp(lambda x: mask_gradient(x, mask).pow(2), x)[1](torch.ones_like(x))[0], want)
    torch.testing.assert_close(jvp(lambda x: mask_gradient(x, mask).pow(2), (x,), (torch.ones_like(x),))[1], want)
    many = torch.randn(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(vmap(grad(f))(many), 2 * many * factor)
    assert torch.equal(vmap(lambda x: mask_gradient(x, mask), in_dims=1)(x.unsqueeze(1))[0], x)
    torch.testing.assert_close(hessian(f)(x).sum((2, 3)), 2 * factor * factor)
    torch.testing.assert_close(grad(lambda x: grad(f)(x).pow(2).sum())(x), 8 * x * factor**3)


def test_a_mask_a_sample():
    x, masks = torch.randn(3, *SHAPE), torch.rand(3, *SHAPE) > 0.5
    got = vmap(grad(lambda x, m: mask_gradient(x, m).sum()))(x, masks)
    assert torch.equal(got, masks.float())


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind):
    mask, factor = mask_of(kind)
    x, tangent = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    with forward_ad.dual_level():
        y = mask_gradient(forward_ad.make_dual(x, tangent), mask)
        primal, got = forward_ad.unpack_dual(y)
    assert torch.equal(primal, x) and torch.equal(got, tangent * factor)


def test_a_floating_mask_is_a_constant():
    mask = torch.rand(SHAPE, requires_grad=True)
    x = torch.randn(SHAPE, requires_grad=True)
    (first,) = torch.autograd.grad(mask_gradient(x, mask).pow(2).sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), mask, allow_unused=True) == (None,)
    assert not grad(lambda m: mask_gradient(x.detach(), m).pow(2).sum())(mask.detach()).any()


def test_what_backward_keeps():
    x = torch.randn(64, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mask_gradient(x, Mask.full((64, 64)))
        assert not kept  # the mask has its bits already
        mask_gradient(x, torch.ones(64, 64, dtype=torch.bool))
    assert [t.dtype for t in kept] == [torch.bool]
    mask = torch.ones(64, 64, dtype=torch.bool)
    y = mask_gradient(x, mask)
    mask[0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_gradients():
    x = torch.randn(SHAPE)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = mask_gradient(x, torch.ones(SHAPE, dtype=torch.bool))
        assert torch.equal(y, x) and not y.requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not mask_gradient(x, torch.ones(SHAPE, dtype=torch.bool)).requires_grad


def test_output_refuses_to_change_in_place():
    y = mask_gradient(torch.randn(SHAPE, requires_grad=True), torch.ones(SHAPE, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="inplace"):
        y.add_(1)


@pytest.mark.parametrize("kind", ["bool", "floating"])
def test_autocast_leaves_it_alone(kind):
    mask, factor = mask_of(kind, dtype=torch.float32)
    x = torch.randn(SHAPE, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = mask_gradient(x, mask)
        y.sum().backward()
    assert y.dtype == torch.float32 and torch.equal(x.grad, factor)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients():
    table = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4) > 0.5
    rows = torch.tensor([1, 3, 1])
    torch.nn.functional.embedding(rows, mask_gradient(table.weight, mask), sparse=True).sum().backward()
    want = torch.zeros(6, 4).index_add_(0, rows, torch.ones(3, 4)) * mask
    assert table.weight.grad.is_sparse and torch.equal(table.weight.grad.to_dense(), want)


class Layer(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE))
        self.mask = mask

    def forward(self, x):
        return torch.nn.functional.linear(x, mask_gradient(self.weight, self.mask))


@pytest.mark.parametrize("kind", ["Mask", "bool", "floating"])
def test_compile(kind):
    mask, factor = mask_of(kind, dtype=torch.float32)
    layer, x = Layer(mask), torch.randn(3, SHAPE[1])
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))
    torch.compile(layer, fullgraph=True)(x).sum().backward()
    got, layer.weight.grad = layer.weight.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(got, layer.weight.grad)
    assert got.any() and (kind == "floating" or not got[factor == 0].any())

    def gradient(weight, x):
        return grad(lambda w: functional_call(layer, {"weight": w}, (x,)).pow(2).sum())(weight)

    weight = layer.weight.detach()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight, x), gradient(weight, x))
    assert gradient(weight, x).any()


def test_compile_in_forward_mode():
    """The graph breaks, and the tangent is right."""
    mask, factor = mask_of("bool", dtype=torch.float32)
    compiled = torch.compile(lambda x: mask_gradient(x, mask) * 2, backend="aot_eager")
    with forward_ad.dual_level():
        y = compiled(forward_ad.make_dual(torch.randn(SHAPE), torch.ones(SHAPE)))
        assert torch.equal(forward_ad.unpack_dual(y).tangent, 2 * factor)


@pytest.mark.parametrize("kind", ["Mask", "bool", "floating"])
def test_export(kind):
    mask, _ = mask_of(kind, dtype=torch.float32)
    layer, x = Layer(mask).eval(), torch.randn(3, SHAPE[1])
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(layer, (x,), strict=strict).module()(x), layer(x))


def test_every_backend_gives_the_same(backend):
    mask, factor = mask_of("Mask", dtype=torch.float32)
    x = torch.randn(SHAPE, requires_grad=True)
    mask_gradient(x, mask).sum().backward()
    assert torch.equal(x.grad, factor)


def test_meta():
    x = torch.empty(SHAPE, device="meta", requires_grad=True)
    mask_gradient(x, Mask.full(SHAPE)).sum().backward()
    assert x.grad.is_meta and x.grad.shape == SHAPE


X, M = torch.randn(5, 8), torch.ones(5, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mask_gradient(X, M.T), ValueError, r"mask must have the shape of input, \[5, 8\], got \[8, 5\]$"),
        (lambda: mask_gradient(X, M[0]), ValueError, r"shape of input, \[5, 8\], got \[8\]"),
        (lambda: mask_gradient(X, Mask.full((5, 9))), ValueError, r"shape of input, \[5, 8\], got \[5, 9\]"),
        (lambda: mask_gradient(X, None), TypeError, "mask must be a maskfuse.Mask or a tensor, got NoneType"),
        (lambda: mask_gradient(X, M.double()), TypeError, r"input's dtype, got float64 .* for float32 tensor \[5, 8\]"),
        (lambda: mask_gradient(X, M.int() * 2), ValueError, r"0 or 1 everywhere \(mask is int32 tensor \[5, 8\]\)"),
        (lambda: mask_gradient(X, M.to(torch.complex64)), TypeError, "complex64"),
        (lambda: mask_gradient(X.int(), M), TypeError, r"input must be float32.*got int32 tensor \[5, 8\]"),
        (lambda: mask_gradient([1.0], M), TypeError, "input must be a tensor, got list"),
        (lambda: mask_gradient(X.to("meta"), M), ValueError, "mask and input must be on one device, got cpu and meta"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_is_public():
    assert maskfuse.mask_gradient is mask_gradient and "mask_gradient" in maskfuse.__all__
