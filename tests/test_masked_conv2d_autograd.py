"""Derivatives of masked_conv2d: checked numerically, by torch's own op checker, and under its transforms."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from conftest import thorough
from maskfuse import Mask, gated_conv2d, masked_conv2d, reference
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.library import opcheck

GEOMETRY = ([2, 1], [1, 0], [1, 2], 1)
BATCH, IN, OUT, HEIGHT, WIDTH = 2, 4, 3, 5, 6


@pytest.fixture
def x():
    return torch.randn(BATCH, IN, HEIGHT, WIDTH, dtype=torch.float64)


@pytest.fixture
def w():
    return torch.randn(OUT, IN, 3, 2, dtype=torch.float64)


@pytest.fixture
def b():
    return torch.randn(OUT, dtype=torch.float64)


@pytest.fixture
def mask():
    return Mask.random((OUT, IN, 3, 2), 0.5)


def planned(bits, columns, rows, taps):
    transposed = torch.ops.maskfuse.mask_transpose(bits, columns, taps)
    return [
        torch.ops.maskfuse.mask_plan(bits, columns, taps),
        torch.ops.maskfuse.mask_plan(transposed, rows * taps, taps),
    ]


def leaves(*tensors):
    return tuple(t.requires_grad_() for t in tensors)


def test_gradcheck(backend, x, w, b, mask):
    args, how = leaves(x, w, b), thorough(backend)
    assert gradcheck(lambda x, w, b: masked_conv2d(x, w, mask, b, *GEOMETRY), args, check_forward_ad=True, **how)
    if backend == "triton":
        return  # torch's convolution runs the rest
    soft = torch.rand_like(w).requires_grad_()
    assert gradcheck(lambda x, w, s: masked_conv2d(x, w, s, None, *GEOMETRY), (*args[:2], soft), **how)
    assert gradcheck(lambda x, w, s: gated_conv2d(x, w, s, None, *GEOMETRY), (*args[:2], soft), **how)


def test_gradgradcheck(backend, x, w, b, mask):
    args, how = leaves(x, w, b), {"check_fwd_over_rev": backend != "triton", **thorough(backend)}
    assert gradgradcheck(lambda x, w, b: masked_conv2d(x, w, mask, b, *GEOMETRY), args, **how)


@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "direct", "library", "naive"])
def test_the_kernels_with_a_plan(x, w, b, mask, kernel):
    plan = planned(mask.bits, IN * 6, OUT, 6)
    op = maskfuse.ops.masked_conv2d
    torch.ops.maskfuse.prefer_masked_conv2d_kernel(kernel)
    try:
        args = leaves(x, w, b)
        run = lambda x, w, b: op(x, w, mask.bits, plan, b, *GEOMETRY)  # noqa: E731
        assert gradcheck(run, args) and gradgradcheck(run, args)
        opcheck(torch.ops.maskfuse.masked_conv2d.default, (x, w, mask.bits, plan, b, *GEOMETRY))
    finally:
        torch.ops.maskfuse.prefer_masked_conv2d_kernel("")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(x, w, b, mask, memory_format):
    ops = torch.ops.maskfuse
    y = masked_conv2d(x, w, mask, b, *GEOMETRY)
    x, w, b, dy = leaves(x.to(memory_format=memory_format), w, b, torch.randn_like(y).to(memory_format=memory_format))
    for batch in (slice(None), slice(0, 0)):
        opcheck(ops.masked_conv2d.default, (x[batch], w, mask.bits, [], b, *GEOMETRY))
        opcheck(ops.masked_conv2d.default, (x[batch], w, mask.bits, [], None, *GEOMETRY))
        opcheck(ops.masked_conv2d_input_grad.default, (dy[batch], w, mask.bits, [], [HEIGHT, WIDTH], *GEOMETRY))
        opcheck(ops.masked_conv2d_weight_grad.default, (dy[batch], x[batch], mask.bits, [], [3, 2], *GEOMETRY))


def transforms(w, x):
    t = torch.randn_like(w)
    return {
        "grad": lambda f: grad(f)(w, x),
        "per-sample grad": lambda f: vmap(grad(f), (None, 0))(w, x.unsqueeze(1)),
        "grad of grad": lambda f: grad(lambda w: grad(f)(w, x).pow(2).sum())(w),
        "vjp": lambda f: vjp(lambda w: f(w, x), w)[1](torch.tensor(2.0, dtype=w.dtype))[0],
        "jvp": lambda f: jvp(lambda w: f(w, x), (w,), (t,))[1],
        "jacrev": lambda f: jacrev(f, 1)(w, x),
        "jacfwd": lambda f: jacfwd(f, 1)(w, x),
        "ensemble": lambda f: vmap(f, (0, None))(torch.stack([w, t]), x),
        "stacked batches": lambda f: vmap(f, (None, 1))(w, torch.stack([x, 2 * x], 1)),
    }


def test_func_transforms(x, w, b, mask):
    def loss(function):
        return lambda w, x: function(x, w, mask, b, *GEOMETRY).pow(3).sum()

    for name, case in transforms(w, x).items():
        got, want = case(loss(masked_conv2d)), case(loss(reference.masked_conv2d))
        torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")


def test_jvp_of_the_bias_alone(x, w, mask, b):
    tangent = torch.randn_like(b)
    out, t = jvp(lambda b: masked_conv2d(x, w, mask, b, *GEOMETRY), (b,), (tangent,))
    assert torch.equal(t, tangent[:, None, None].expand_as(out))


def test_functional_call(mask, x):
    layer = maskfuse.nn.MaskedConv2d(IN, OUT, (3, 2), mask=mask, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    got = grad(lambda p: functional_call(layer, p, (x,)).pow(2).sum())(parameters)["weight"]
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(got, layer.weight.grad)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compile(compiler, memory_format):
    torch._dynamo.reset()
    layer = maskfuse.nn.MaskedConv2d(40, 20, 3, padding=1, stride=2, mask=Mask.random((20, 40, 3, 3), 0.2))
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for size in ((2, 40, 7, 9), (3, 40, 8, 8)):
        x = torch.randn(size).to(memory_format=memory_format).requires_grad_()
        results = []
        for module in (layer, compiled):
            layer.zero_grad()
            x.grad = None
            y = module(x)
            y.pow(2).sum().backward()
            results.append((y, layer.weight.grad, layer.bias.grad, x.grad))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced, atol=1e-4, rtol=1e-4)
            assert eager.stride() == traced.stride()


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    layer = maskfuse.nn.MaskedConv2d(40, 20, 3, padding="same", mask=Mask.random((20, 40, 3, 3), 0.2)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(4, 40, 6, 7),), dynamic_shapes=({0: batch},), strict=strict)
    assert "maskfuse.masked_conv2d" in program.graph_module.code
    for size in (4, 11):
        x = torch.randn(size, 40, 6, 7)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = maskfuse.nn.MaskedConv2d(40, 20, 3, mask=Mask.random((20, 40, 3, 3), 0.2))
    x = torch.randn(2, 40, 7, 9, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.float().pow(2).sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    assert not layer.weight.grad[~layer.mask.dense()].any()
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.05)


def test_no_gradient_is_computed_that_nobody_asks_for(x, w, mask):
    y = masked_conv2d(x, w.requires_grad_(), mask, None, *GEOMETRY)
    y.sum().backward()
    assert x.grad is None and w.grad is not None
    x.requires_grad_()
    masked_conv2d(x, w.detach(), mask, None, *GEOMETRY).sum().backward()
    want = x.grad.clone()
    x.grad = None
    reference.masked_conv2d(x, w.detach(), mask, None, *GEOMETRY).sum().backward()
    torch.testing.assert_close(want, x.grad)
