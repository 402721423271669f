"""gated_linear against the reference in float64, its derivatives of every kind, and what it keeps."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from conftest import DTYPES, LEVELS, assert_sums_close
from maskfuse import gated_linear, reference
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

SHAPES = [(0, 5, 7), (1, 1, 1), (1, 65, 130), (5, 33, 31), (9, 64, 300), (37, 50, 77), (3, 4, 0), (150, 129, 40)]


def operands(batch, out, inp, dtype):
    return [torch.randn(shape).to(dtype) for shape in ((batch, inp), (out, inp), (out, inp), (out,))]


def forward_backward(function, values, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in values]
    y = function(*leaves)
    y.backward(upstream)
    return [y.detach(), *[t.grad for t in leaves]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(backend, shape, dtype):
    x, w, s, b = operands(*shape, dtype)
    upstream = torch.randn(shape[0], shape[1]).to(dtype)
    got = forward_backward(gated_linear, (x, w, 3 * s, b), upstream)
    exact = [t.double() for t in (x, w, 3 * s, b)]
    want = forward_backward(reference.gated_linear, exact, upstream.double())
    sizes = forward_backward(
        reference.gated_linear, [exact[0].abs(), exact[1].abs(), exact[2], exact[3].abs()], upstream.double().abs()
    )
    batch, out, inp = shape
    terms = [inp, out, batch, batch, batch]
    for ours, theirs, size, count in zip(got, want, sizes, terms, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        if dtype == torch.float64:  # the exact one is as rounded: PyTorch's 1 - gate cancels
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
        elif backend in ("triton", "reference"):  # these round the product; plain PyTorch gate and 1 - gate too
            torch.testing.assert_close(ours.double(), theirs, atol=0.2 if dtype.itemsize == 2 else 1e-4, rtol=0.05)
        else:  # a sigmoid is right to a few units in the last place
            assert_sums_close(ours, theirs, 4 * size, dtype, count)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sigmoid_of_every_size(level, dtype):
    before = torch.ops.maskfuse.set_cpu_level(level)
    try:
        scores = torch.cat([torch.linspace(-100, 100, 20001), torch.tensor([0.0, -0.0, float("inf"), -float("inf")])])
        scores = scores.to(dtype)[:, None]
        x = torch.ones(1, 1, dtype=dtype)
        for batch in (1, 20):  # read in place, and copied
            got = torch.ops.maskfuse.gated_linear(x.expand(batch, 1), torch.ones_like(scores), scores, None)[0]
            want = torch.sigmoid(scores.double())[:, 0]
            error = (got.double() - want).abs() / torch.finfo(dtype).eps
            assert (error <= 4 * want + 1e-30 / torch.finfo(dtype).eps).all()
        nan = torch.full((40, 1), float("nan"), dtype=dtype)
        assert torch.ops.maskfuse.gated_linear(x, torch.ones_like(nan), nan, None).isnan().all()
    finally:
        torch.ops.maskfuse.set_cpu_level(before)


def test_derivatives():
    values = [t.requires_grad_() for t in operands(3, 4, 5, torch.float64)]
    assert gradcheck(gated_linear, values)
    assert gradgradcheck(gated_linear, values)
    assert gradcheck(gated_linear, values, check_forward_ad=True)


def test_only_what_is_asked_for():
    for wanted in range(4):
        values = operands(3, 4, 5, torch.float32)
        values[wanted].requires_grad_()
        gated_linear(*values).sum().backward()
        assert [t.grad is not None for t in values] == [i == wanted for i in range(4)]


def test_func_and_compile():
    x, w, s, b = operands(3, 4, 5, torch.float64)

    def loss(function):
        return lambda s, x: function(x, w, s, b).pow(2).sum()

    torch.testing.assert_close(grad(loss(gated_linear))(s, x), grad(loss(reference.gated_linear))(s, x))
    per_sample = vmap(grad(loss(gated_linear)), (None, 0))(s, x)
    torch.testing.assert_close(per_sample, vmap(grad(loss(reference.gated_linear)), (None, 0))(s, x))
    torch._dynamo.reset()
    leaf = s.clone().requires_grad_()
    compiled = torch.compile(lambda x, s: gated_linear(x, w, s, b), fullgraph=True, backend="aot_eager")
    compiled(x, leaf).pow(2).sum().backward()
    torch.testing.assert_close(leaf.grad, grad(loss(reference.gated_linear))(s, x))


def test_autocast():
    x, w, s, b = operands(3, 4, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_linear(x, w, s, b)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference.gated_linear(x, w, s, b), atol=0.05, rtol=0.05)


def test_nothing_of_the_weights_size_is_kept():
    x, w, s, b = [t.requires_grad_() for t in operands(8, 200, 300, torch.float32)]
    kept = []

    def pack(t):
        kept.append(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        gated_linear(x, w, s, b)
        assert set(kept) == {t.untyped_storage().data_ptr() for t in (x, w, s)}
        reference.gated_linear(x, w, s, b)  # the control keeps a gate, and a product
        assert len(set(kept)) > 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": torch.randn(5, 4)}, ValueError, r"scores must have the shape of weight, \[4, 5\], got \[5, 4\]"),
        ({"scores": torch.randn(4, 5).double()}, TypeError, "scores and weight must have one dtype"),
        ({"scores": torch.ones(4, 5, dtype=torch.bool)}, TypeError, "scores must be float32"),
        ({"scores": None}, TypeError, "scores must be a tensor, got NoneType"),
        (
            {"input": torch.randn(3, 6)},
            ValueError,
            r"input must have shape \[..., 5\] for weight \[4, 5\], got \[3, 6\]",
        ),
        ({"weight": torch.randn(4, 5, 1)}, ValueError, r"weight must have shape \[out, in\]"),
        ({"bias": torch.randn(5)}, ValueError, r"bias must have shape \[4\], got float32 tensor \[5\]"),
    ],
)
def test_bad_input(change, error, message):
    values = dict(zip(("input", "weight", "scores", "bias"), operands(3, 4, 5, torch.float32), strict=True))
    with pytest.raises(error, match=message):
        gated_linear(**{**values, **change})


def test_ops_refuse_what_the_function_would_not_send():
    x, w, s, b = operands(3, 4, 5, torch.float32)
    ops = torch.ops.maskfuse
    with pytest.raises(RuntimeError, match=r"scores must have shape \[4, 5\], got \[5, 4\]"):
        ops.gated_linear(x, w, s.T, b)
    with pytest.raises(RuntimeError, match="weight must have shape"):
        ops.gated_linear_weight_grad(torch.randn(3, 4), x, w[:3], s)
    with pytest.raises(RuntimeError, match="same leading dimensions"):
        ops.gated_linear_weight_grad(torch.randn(2, 4), x, w, s)


def test_opcheck():
    x, w, s, b = operands(3, 4, 5, torch.float32)
    up = torch.randn(3, 4)
    utilities = ("test_schema", "test_faketensor")
    for op, args in {
        torch.ops.maskfuse.gated_linear.default: (x, w, s, b),
        torch.ops.maskfuse.gated_linear_input_grad.default: (up, w, s),
        torch.ops.maskfuse.gated_linear_weight_grad.default: (up, x, w, s),
    }.items():
        torch.library.opcheck(op, args, test_utils=utilities)


def test_names_are_public():
    assert maskfuse.gated_linear is gated_linear
