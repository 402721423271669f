"""Derivatives of masked_linear: checked numerically, by torch's own op checker, and under its transforms."""

from __future__ import annotations

import maskfuse
import pytest
import torch
import torch._dynamo.testing
from conftest import thorough
from maskfuse import Mask, masked_linear, reference
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.library import opcheck

OUT, IN, BATCH = 5, 37, 3


@pytest.fixture
def x():
    return torch.randn(BATCH, IN, dtype=torch.float64)


@pytest.fixture
def w():
    return torch.randn(OUT, IN, dtype=torch.float64)


@pytest.fixture
def b():
    return torch.randn(OUT, dtype=torch.float64)


@pytest.fixture
def mask():
    return Mask.random((OUT, IN), 0.5)


@pytest.fixture
def soft():
    return torch.rand(OUT, IN, dtype=torch.float64)


def leaves(*tensors):
    return tuple(t.requires_grad_() for t in tensors)


def test_gradcheck(backend, x, w, b, mask, soft):
    args = leaves(x, w, b)
    how = {"check_forward_ad": True, **thorough(backend)}
    assert gradcheck(lambda x, w, b: masked_linear(x, w, mask, b), args, **how)
    assert gradcheck(lambda w: masked_linear(x.detach(), w, mask), args[1:2], **thorough(backend))
    assert gradcheck(masked_linear, (*leaves(x, w, soft), args[2]), **how)
    assert gradcheck(lambda x: masked_linear(x[0], w, mask, b), args[:1], **how)  # one dimension


def test_gradgradcheck(backend, x, w, b, mask, soft):
    args = leaves(x, w, b)
    how = thorough(backend)
    assert gradgradcheck(lambda x, w, b: masked_linear(x, w, mask, b), args, check_fwd_over_rev=True, **how)
    assert gradgradcheck(masked_linear, (*leaves(x, w, soft), args[2]), **how)


def test_opcheck(x, w, b, mask, soft):
    ops = torch.ops.maskfuse
    dy = torch.randn(BATCH, OUT, dtype=torch.float64)
    x, w, b, dy, soft = leaves(x, w, b, dy, soft)
    for batch in (slice(None), slice(0, 0)):
        opcheck(ops.masked_linear.default, (x[batch], w, mask.bits, [], b))
        opcheck(ops.masked_linear.default, (x[batch], w, mask.bits, [], None))
        opcheck(ops.masked_linear_input_grad.default, (dy[batch], w, mask.bits, []))
        opcheck(ops.masked_linear_weight_grad.default, (dy[batch], x[batch], mask.bits, []))
        opcheck(ops.soft_masked_linear.default, (x[batch], w, soft, b))
        opcheck(ops.soft_masked_linear_input_grad.default, (dy[batch], w, soft))
        opcheck(ops.soft_masked_linear_weight_grad.default, (dy[batch], x[batch], soft))
    opcheck(ops.mask_pack.default, (mask.dense(),))
    opcheck(ops.mask_unpack.default, (mask.bits, IN))
    opcheck(ops.mask_structure.default, (mask.bits, IN, 1))


def test_plan_tensors_travel_through_every_path(x, w, mask):
    columns = mask.shape[1]
    transposed = torch.ops.maskfuse.mask_transpose(mask.bits, columns, 1)
    plan = [torch.ops.maskfuse.mask_plan(bits, n, 0) for bits, n in ((mask.bits, columns), (transposed, mask.shape[0]))]
    opcheck(torch.ops.maskfuse.masked_linear.default, (*leaves(x, w), mask.bits, plan, None))
    plain = grad(lambda w: maskfuse.ops.masked_linear(x, w, mask.bits, [], None).pow(2).sum())(w)
    planned = grad(lambda w: maskfuse.ops.masked_linear(x, w, mask.bits, plan, None).pow(2).sum())(w)
    torch.testing.assert_close(plain, planned)
    y = maskfuse.ops.masked_linear(x, w, mask.bits, plan, None)
    assert torch.equal(torch.autograd.grad(y.pow(2).sum(), w)[0], planned)


@pytest.fixture(params=["binary", "real-valued"])
def losses(request, x, b, mask, soft):
    m = mask if request.param == "binary" else soft
    return (
        lambda w, x: masked_linear(x, w, m, b).pow(3).sum(),
        lambda w, x: reference.masked_linear(x, w, m, b).pow(3).sum(),
    )


def transforms(w, x):
    t = torch.randn_like(w)
    return {
        "grad": lambda f: grad(f)(w, x),
        "per-sample grad": lambda f: vmap(grad(f), (None, 0))(w, x),
        "grad of grad": lambda f: grad(lambda w: grad(f)(w, x).pow(2).sum())(w),
        "vjp": lambda f: vjp(lambda w: f(w, x), w)[1](torch.tensor(2.0, dtype=w.dtype))[0],
        "jvp": lambda f: jvp(lambda w: f(w, x), (w,), (t,))[1],
        "jvp of grad": lambda f: jvp(lambda w: grad(f)(w, x), (w,), (t,))[1],
        "jacrev": lambda f: jacrev(f, 1)(w, x),
        "jacfwd": lambda f: jacfwd(f, 1)(w, x),
        "hessian": lambda f: hessian(f)(w, x),
        "ensemble": lambda f: vmap(f, (0, None))(torch.stack([w, t]), x),
    }


def test_func_transforms(losses, x, w):
    ours, theirs = losses
    for name, case in transforms(w, x).items():
        torch.testing.assert_close(case(ours), case(theirs), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_func_transforms_inside_compile(compiler, losses, x, w):
    ours, theirs = losses
    for name, case in transforms(w, x).items():
        torch._dynamo.reset()
        got = torch.compile(lambda case=case: case(ours), fullgraph=True, backend=compiler)()
        torch.testing.assert_close(got, case(theirs), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_tangents_from_outside_a_compiled_function(compiler, x, w, mask):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: masked_linear(x, w, mask), backend=compiler)
    compiled(x, w)  # traced without a tangent first
    tangent = torch.randn_like(w)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(compiled(x, forward_ad.make_dual(w, tangent)))
        torch.testing.assert_close(out.tangent, masked_linear(x, tangent, mask))


def test_vmap_over_nothing(w, x, mask):
    assert vmap(lambda w: masked_linear(x, w, mask))(w.new_empty(0, OUT, IN)).shape == (0, BATCH, OUT)


def test_vmap_over_input_dimensions(x, w, mask, b):
    stacked = torch.stack([x, x + 1, x - 1], 1)
    got = vmap(lambda x: masked_linear(x, w, mask, b), in_dims=1, out_dims=1)(stacked)
    torch.testing.assert_close(got, masked_linear(stacked, w, mask, b))


def test_jvp_of_the_bias_alone(x, w, mask, b):
    tangent = torch.randn_like(b)
    out, t = jvp(lambda b: masked_linear(x, w, mask, b), (b,), (tangent,))
    assert torch.equal(t, tangent.expand_as(out))


def test_functional_call(x, mask):
    layer = maskfuse.nn.MaskedLinear(IN, OUT, mask=mask, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    got = grad(lambda p: functional_call(layer, p, (x,)).pow(2).sum())(parameters)["weight"]
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(got, layer.weight.grad)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler, mask, soft):
    torch._dynamo.reset()
    layer = maskfuse.nn.MaskedLinear(IN, OUT, mask=mask)
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for batch in (4, 9):
        x = torch.randn(batch, IN, requires_grad=True)
        results = []
        for module in (layer, compiled):
            layer.weight.grad = x.grad = None
            module(x).pow(2).sum().backward()
            results.append((layer.weight.grad, x.grad))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced)

    def soft_loss(x, w, m):
        return masked_linear(x, w, m.float()).pow(2).sum()

    w = layer.weight
    eager = torch.autograd.grad(soft_loss(x, w, soft.requires_grad_()), (x, w, soft))
    traced = torch.autograd.grad(torch.compile(soft_loss, fullgraph=True, backend=compiler)(x, w, soft), (x, w, soft))
    for one, other in zip(eager, traced, strict=True):
        torch.testing.assert_close(one, other)


def test_compile_packs_raw_masks(mask):
    torch._dynamo.reset()
    x, w = torch.randn(4, IN), torch.randn(OUT, IN)
    compiled = torch.compile(masked_linear, fullgraph=True, backend="aot_eager")
    want = masked_linear(x, w, mask)
    assert torch.equal(compiled(x, w, mask.dense()), want)
    assert torch.equal(compiled(x, w, mask.dense().int()), want)
    with pytest.raises(RuntimeError, match="0 or 1"):
        compiled(x, w, mask.dense().int() * 2)


def test_a_new_mask_of_the_same_kind_does_not_recompile(mask):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = maskfuse.nn.MaskedLinear(IN, OUT, mask=mask)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(4, IN)
    for density in (0.1, 0.5, 0.9):
        layer.set_mask(Mask.random((OUT, IN), density), retain=True)
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1

    # The same for masks that are large enough to have a plan, whose size changes with them.
    layer = maskfuse.nn.MaskedLinear(80, 70, mask=Mask.random((70, 80), 0.3))
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(4, 80)
    sizes = set()
    for density in (0.1, 0.5, 0.9):
        layer.set_mask(Mask.random((70, 80), density), retain=True)
        sizes.add(layer.mask.plan[0].numel())
        assert torch.equal(compiled(x), layer(x))
    assert len(sizes) == 3 and counter.frame_count == 2


def test_compile_obeys_use_backend(mask):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    x, w = torch.randn(4, IN), torch.randn(OUT, IN)
    compiled = torch.compile(lambda x, w: masked_linear(x, w, mask), fullgraph=True, backend=keep)
    compiled(x, w)
    with maskfuse.use_backend("reference"):
        compiled(x, w)
    compiled(x, w)
    assert len(graphs) == 2 and "maskfuse.masked_linear" in graphs[0] and "maskfuse.masked_linear" not in graphs[1]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_one_tensor_as_input_and_weight(compiler):
    """pytorch#183604: under compile a tensor passed twice to an op has been given half its gradient."""
    torch._dynamo.reset()
    mask = Mask.random((6, 6), 0.5)
    start = torch.randn(6, 6, dtype=torch.float64)

    def gradient(function):
        t = start.clone().requires_grad_()
        function(t).pow(2).sum().backward()
        return t.grad

    want = gradient(lambda t: reference.masked_linear(t, t, mask))
    torch.testing.assert_close(gradient(lambda t: masked_linear(t, t, mask)), want)
    compiled = torch.compile(lambda t: masked_linear(t, t, mask), fullgraph=True, backend=compiler)
    torch.testing.assert_close(gradient(compiled), want)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict, mask):
    layer = maskfuse.nn.MaskedLinear(IN, OUT, mask=mask)
    x = torch.randn(4, IN)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert "maskfuse.masked_linear" in program.graph_module.code
    for rows in (4, 11):
        x = torch.randn(rows, IN)
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, mask):
    layer = maskfuse.nn.MaskedLinear(IN, OUT, mask=mask)
    x = torch.randn(4, IN, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        assert y.dtype == torch.nn.functional.linear(x, layer.weight).dtype == dtype
        wide = masked_linear(x.double(), layer.weight.double(), mask)  # float64 is left alone, as in torch
        assert wide.dtype == torch.float64
    y.float().pow(2).sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    assert not layer.weight.grad[~mask.dense()].any()
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)


def test_no_gradient_is_computed_that_nobody_asks_for(x, w, mask):
    y = masked_linear(x, w.requires_grad_(), mask)
    y.sum().backward()
    assert x.grad is None and w.grad is not None
    with torch.no_grad():
        assert not masked_linear(x, w, mask).requires_grad


def test_second_backward_needs_retain_graph(x, w, mask):
    y = masked_linear(x, w.requires_grad_(), mask).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_changing_the_weight_before_backward_is_noticed(x, w, mask):
    x.requires_grad_()
    y = masked_linear(x, w, mask).sum()
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
