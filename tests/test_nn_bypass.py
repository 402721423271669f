"""Bypass by flag and by sample: what is run and what is not, values and gradients, compile, state, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from bypassed import ACTIVE, ALL, NONE, Counted, D, FirstLogit, N, choose_by_hand, residual, skipped_by_hand
from copies import pickled
from maskfuse.nn import Bypass
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

# -- by flag -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["identity", "zeros", "module"])
def test_by_flag(kind):
    module, other = Counted(nn.Linear(D, D)), Counted(nn.Linear(D, D))
    bypass = Bypass(module, skipped=other if kind == "module" else kind)
    x = torch.randn(3, 2, D)
    assert torch.equal(bypass(x), module.layer(x)) and (module.rows, other.rows) == ([3], [])
    bypass.active = False
    want = skipped_by_hand(other.layer if kind == "module" else kind, x)
    assert torch.equal(bypass(x), want) and module.rows == [3] and other.rows == ([3] if kind == "module" else [])
    assert torch.equal(bypass(x, active=True), module.layer(x)) and module.rows == [3, 3]  # the call goes first
    bypass.active = True
    assert torch.equal(bypass(x, active=False), want) and module.rows == [3, 3]
    if kind == "identity":
        assert bypass(x, active=False) is x
    scalar = torch.tensor(2.0)
    assert Bypass(nn.ReLU())(scalar) == 2 and Bypass(nn.ReLU(), active=False)(scalar) == 2


# -- by sample ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [ACTIVE, ~ACTIVE, NONE, ALL], ids=["some", "others", "none", "all"])
@pytest.mark.parametrize("kind", ["identity", "zeros", "module"])
@pytest.mark.parametrize("trailing", [(D,), (2, 3, D)])
def test_by_sample(active, kind, trailing):
    module, other = Counted(nn.Linear(D, D)), Counted(nn.Linear(D, D))
    bypass = Bypass(module, skipped=other if kind == "module" else kind)
    x = torch.randn(N, *trailing, requires_grad=True)
    y = bypass(x, active)
    count = int(active.sum())
    assert module.rows == ([count] if count else [])
    assert other.rows == ([N - count] if kind == "module" and count < N else [])
    want = choose_by_hand(active, module.layer(x), skipped_by_hand(other.layer if kind == "module" else kind, x))
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(y)
    inputs = [x, *module.parameters(), *other.parameters()]
    got = torch.autograd.grad(y, inputs, upstream, allow_unused=True) if y.requires_grad else [None] * len(inputs)
    for ours, theirs in zip(got, torch.autograd.grad(want, inputs, upstream, allow_unused=True), strict=True):
        theirs = torch.zeros_like(ours) if theirs is None and ours is not None else theirs
        ours = torch.zeros_like(theirs) if ours is None and theirs is not None else ours
        torch.testing.assert_close(ours, theirs)


def test_samples_keep_their_order_and_what_is_skipped_cannot_leak():
    x = torch.randn(N, D)
    x[~ACTIVE] = float("nan")
    seen = []
    bypass = Bypass(nn.Linear(D, D), skipped="zeros")
    bypass.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x.requires_grad_()
    y = bypass(x, ACTIVE)
    assert torch.equal(seen[0], x[ACTIVE]) and not y[~ACTIVE].any() and y.isfinite().all()
    y.sum().backward()
    assert bypass.module.weight.grad.isfinite().all() and not x.grad[~ACTIVE].any() and x.grad[ACTIVE].any()


@pytest.mark.parametrize("kind", ["identity", "zeros", nn.AvgPool2d(3, 1, 1)], ids=str)
def test_memory_format(kind):
    bypass = Bypass(nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last), skipped=kind)
    formats = []
    bypass.module.register_forward_pre_hook(
        lambda module, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    x = torch.randn(N, 4, 6, 5)
    y = bypass(x.to(memory_format=torch.channels_last), ACTIVE)
    assert formats == [True] and y.is_contiguous(memory_format=torch.channels_last)
    want = choose_by_hand(ACTIVE, bypass.module(x), skipped_by_hand(kind, x))
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)


def test_a_module_that_changes_the_shape():
    bypass = Bypass(nn.Conv2d(3, 8, 3, stride=2, padding=1), skipped=nn.Conv2d(3, 8, 1, stride=2))
    x = torch.randn(N, 3, 6, 6)
    torch.testing.assert_close(
        bypass(x, ACTIVE), choose_by_hand(ACTIVE, bypass.module(x), bypass.skipped(x)), atol=1e-5, rtol=1e-5
    )
    assert bypass(x, NONE).shape == (N, 8, 3, 3)


@pytest.mark.parametrize("kind", ["identity", "zeros"])
def test_empty_batch(kind):
    module = Counted(nn.Linear(D, D))
    for bypass in (Bypass(module, skipped=kind), Bypass(module, p=0.5, per_sample=True, skipped=kind)):
        x = torch.randn(0, D, requires_grad=True)
        y = bypass(x, None if bypass.p else NONE[:0])
        assert y.shape == (0, D) and not module.rows
        assert torch.autograd.grad(y.sum(), x)[0].shape == (0, D) if y.requires_grad else kind == "zeros"
    assert Bypass(module, gate=FirstLogit(), skipped=kind)(torch.randn(0, D)).shape == (0, D)


@pytest.mark.parametrize("active", [ACTIVE, NONE, ALL], ids=["some", "none", "all"])
def test_dtypes_under_autocast(active):
    """The module gives bfloat16; the result is float32 whoever is active."""
    bypass = Bypass(nn.Linear(D, D))
    x = torch.randn(N, D)
    with torch.autocast("cpu", torch.bfloat16):
        y = bypass(x, active)
    assert y.dtype == torch.float32 and torch.equal(y[~active], x[~active])
    torch.testing.assert_close(y[active], bypass.module(x)[active], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", ["identity", "zeros", nn.Tanh()], ids=str)
def test_gradcheck(kind):
    bypass = Bypass(nn.Sequential(nn.Linear(D, D), nn.Tanh()), skipped=kind).double()
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: bypass(x, ACTIVE), x, check_forward_ad=True)
    assert gradgradcheck(lambda x: bypass(x, ACTIVE), x)


# -- compile, transforms, state ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["identity", "zeros", nn.Tanh()], ids=str)
def test_flags_compile_in_one_graph(kind):
    torch._dynamo.reset()
    bypass = Bypass(nn.Linear(D, D), skipped=kind)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(bypass, fullgraph=True, backend=counter)
    x = torch.randn(N, D, requires_grad=True)
    for flag in (True, False) * 3:
        bypass.active = flag
        torch.testing.assert_close(compiled(x), bypass(x))
        torch.testing.assert_close(compiled(x, not flag), bypass(x, not flag))
    assert counter.frame_count <= 4
    bypass.active = True
    with_ops, without = counter.graphs[0], [graph for graph in counter.graphs if "linear" not in graph.code]
    assert "linear" in with_ops.code and (without or kind == "identity")  # what is skipped is not in the graph


@pytest.mark.parametrize("scale", ["eval", "train"])
def test_eval_of_stochastic_depth_compiles_and_exports(scale):
    torch._dynamo.reset()
    bypass = Bypass(nn.Linear(D, D), p=0.3, scale=scale, per_sample=True).eval()
    x = torch.randn(N, D)
    torch.testing.assert_close(torch.compile(bypass, fullgraph=True, backend="aot_eager")(x), bypass(x))
    torch.testing.assert_close(torch.export.export(bypass, (x,)).module()(x), bypass(x))


@pytest.mark.parametrize("mode", ["mask", "gate", "p", "p per sample"])
def test_choices_break_the_graph_and_skip_nevertheless(mode):
    torch._dynamo.reset()
    options = {
        "mask": {},
        "gate": {"gate": FirstLogit()},
        "p": {"p": 0.5, "scale": "train"},
        "p per sample": {"p": 0.5, "per_sample": True},
    }[mode]
    rows = []

    @torch.compiler.disable
    def note(module, args):
        rows.append(args[0].shape[0])

    bypass = Bypass(residual(), **options)
    bypass.module.register_forward_pre_hook(note)
    compiled = torch.compile(bypass, backend="aot_eager")
    for step in range(8):
        x = torch.randn(N + step % 2, D, requires_grad=True)
        active = (torch.arange(x.shape[0]) < step,) if mode == "mask" else ()
        results = []
        for module in (bypass, compiled):
            torch.manual_seed(step)
            rows.clear()
            y = module(x, *active)
            wanted = [p for p in (x, *bypass.parameters())]
            gradients = torch.autograd.grad(y.pow(2).sum(), wanted, allow_unused=True)
            results.append((y, *gradients, list(rows)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="must be known to the host"):
        torch.compile(bypass, fullgraph=True, backend="aot_eager")(x, *active)


def test_the_module_is_compiled_behind_the_break():
    torch._dynamo.reset()
    bypass = Bypass(residual())
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(bypass, backend=counter)
    x = torch.randn(30, D)
    for count in range(30, 1, -1):  # as many as the batch, then any number
        active = torch.arange(30) < count
        torch.testing.assert_close(compiled(x, active), bypass(x, active))
    assert counter.frame_count <= 4 and any("linear" in graph.code for graph in counter.graphs)


def test_functional_call_and_func():
    bypass = Bypass(residual()).double()
    x = torch.randn(N, D, dtype=torch.float64)
    parameters = {name: p.detach().clone() for name, p in bypass.named_parameters()}

    def loss(parameters, x, active):
        return functional_call(bypass, parameters, (x, active)).pow(2).sum()

    for active in (True, ACTIVE):
        want = torch.autograd.grad(bypass(x, active).pow(2).sum(), list(bypass.parameters()))
        for got, exact in zip(grad(loss)(parameters, x, active).values(), want, strict=True):
            torch.testing.assert_close(got, exact)
    per_sample = vmap(lambda x: bypass(x, True))(x)
    torch.testing.assert_close(per_sample, bypass(x))


def test_distributed_data_parallel_needs_to_know_of_skips(tmp_path):
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = torch.randn(N, D, requires_grad=True)
        for aware in (True, False):
            plain = nn.Sequential(nn.Linear(D, D), Bypass(nn.Linear(D, D), active=False))
            model = DistributedDataParallel(plain, find_unused_parameters=aware)
            model(x).sum().backward()
            plain[1].active = True
            if aware:
                model(x).sum().backward()
                assert plain[1].module.weight.grad.any()
            else:
                with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
                    model(x)
    finally:
        distributed.destroy_process_group()


def test_state_and_copies():
    bypass = Bypass(nn.Linear(D, D), gate=FirstLogit(), skipped=nn.Linear(D, D))
    assert list(bypass.state_dict()) == [
        "module.weight",
        "module.bias",
        "gate.slope",
        "skipped.weight",
        "skipped.bias",
    ]
    assert list(Bypass(nn.Linear(D, D), p=0.5).state_dict()) == ["module.weight", "module.bias"]
    x = torch.randn(N, D)
    bypass.active = False
    for again in (copy.deepcopy(bypass), pickled(bypass)):
        assert again.active is False and torch.equal(again(x), bypass(x)) and repr(again) == repr(bypass)


def test_repr():
    assert "(\n  active=False, skipped=identity\n" in repr(Bypass(nn.ReLU(), active=False)).replace("Bypass", "")
    assert "p=0.25, per_sample=True, scale=train, skipped=zeros" in repr(
        Bypass(nn.ReLU(), p=0.25, per_sample=True, scale="train", skipped="zeros")
    )
    assert "temperature=0.5, dense_gradient=True, skipped=identity" in repr(
        Bypass(nn.ReLU(), gate=nn.ReLU(), temperature=0.5, dense_gradient=True)
    )


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, input):
        return self.value


X = torch.randn(N, D)
LINEAR = nn.Linear(D, D)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Bypass(torch.relu), TypeError, r"module must be an nn\.Module, got builtin_function_or_method"),
        (lambda: Bypass(LINEAR, active=1), TypeError, "active must be a bool, got int"),
        (lambda: Bypass(LINEAR, p=1.5), ValueError, r"p must be a probability, 0 to 1, got 1\.5"),
        (lambda: Bypass(LINEAR, p="0.5"), TypeError, "p must be a number, got str"),
        (lambda: Bypass(LINEAR, p=0.5, gate=LINEAR), ValueError, "p and gate cannot both decide"),
        (lambda: Bypass(LINEAR, gate=torch.sign), TypeError, r"gate must be an nn\.Module"),
        (lambda: Bypass(LINEAR, per_sample=True), ValueError, "per_sample and scale go with p"),
        (lambda: Bypass(LINEAR, gate=LINEAR, scale="train"), ValueError, "per_sample and scale go with p"),
        (lambda: Bypass(LINEAR, p=0.5, dense_gradient=True), ValueError, "dense_gradient and temperature go with gate"),
        (lambda: Bypass(LINEAR, p=0.5, scale="test"), ValueError, "scale must be one of eval, train, none, got 'test'"),
        (lambda: Bypass(LINEAR, gate=LINEAR, temperature=0), ValueError, r"temperature must be positive, got 0\.0"),
        (lambda: Bypass(LINEAR, skipped="ones"), ValueError, "skipped must be a module or one of identity, zeros"),
        (lambda: Bypass(LINEAR)([1.0]), TypeError, "input must be a tensor, got list"),
        (lambda: Bypass(LINEAR)(X, "yes"), TypeError, r"active must be a bool or a bool tensor \[N\], got str"),
        (lambda: Bypass(LINEAR)(X, ACTIVE.float()), TypeError, r"bool tensor \[N\], got float32 tensor \[7\]"),
        (
            lambda: Bypass(LINEAR)(X, ACTIVE[:3]),
            ValueError,
            r"active must have shape \[7\] for input float32 tensor \[7, 5\], got bool tensor \[3\]",
        ),
        (lambda: Bypass(LINEAR)(X, torch.tensor(True)), ValueError, r"active must have shape \[7\]"),
        (lambda: Bypass(LINEAR)(X, ACTIVE.to("meta")), ValueError, "active and input must be on one device"),
        (lambda: Bypass(LINEAR, p=0.5, per_sample=True)(torch.tensor(1.0)), ValueError, r"shape \[N, ...\]"),
        (
            lambda: Bypass(nn.Linear(D, 3))(X),
            ValueError,
            r"the module must return the shape of what is skipped, got float32 tensor \[7, 3\] where identity for "
            r"input float32 tensor \[7, 5\]",
        ),
        (lambda: Bypass(nn.Linear(D, 3), skipped="zeros")(X, ACTIVE), ValueError, r"got float32 tensor \[4, 3\]"),
        (
            lambda: Bypass(nn.Linear(D, 3), skipped=LINEAR)(X, ACTIVE),
            ValueError,
            r"got float32 tensor \[4, 3\] where skipped is float32 tensor \[3, 5\]",
        ),
        (lambda: Bypass(Returns(X), skipped=LINEAR)(X, ACTIVE), ValueError, "the module must return 4 samples"),
        (lambda: Bypass(nn.Linear(D, 3), p=0.5, skipped=LINEAR).eval()(X), ValueError, r"where skipped is .*\[7, 5\]"),
        (
            lambda: Bypass(LINEAR, gate=FirstLogit(), skipped=Returns(X))(torch.randn(40, D)),
            ValueError,
            r"the module skipped must return 40 samples, got float32 tensor \[7, 5\]",
        ),
        (lambda: Bypass(Returns((X, X)))(X), TypeError, "the module must return a tensor, got tuple"),
        (lambda: Bypass(LINEAR, skipped=Returns(None))(X, False), TypeError, "the module skipped must return a tensor"),
        (lambda: Bypass(LINEAR, gate=Returns(3.0))(X), TypeError, "the gate's output must be a tensor, got float"),
        (lambda: Bypass(LINEAR, gate=Returns(ACTIVE))(X), TypeError, "the gate's output must be float32"),
        (
            lambda: Bypass(LINEAR, gate=nn.Linear(D, 2))(X),
            ValueError,
            r"the gate must return \[7\] or \[7, 1\] for input float32 tensor \[7, 5\], got float32 tensor \[7, 2\]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
