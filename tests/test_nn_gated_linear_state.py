"""GatedLinear as an nn.Linear: construction, state, copies, casts, averaging, transforms, compile, export, autocast."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from copies import COPIES
from maskfuse.nn import GatedLinear, MaskedLinear
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

OUT, IN = 6, 40
KINDS = ["sigmoid", "straight_through", "hard_concrete"]


def make(kind, dtype=torch.float32, temperature=0.5, **options):
    """A layer with scores on both sides of 0, some of them far out."""
    layer = GatedLinear(IN, OUT, kind=kind, temperature=temperature, dtype=dtype, **options)
    with torch.no_grad():
        layer.scores.copy_(3 * torch.randn(OUT, IN))
    return layer


def test_is_a_linear_layer():
    torch.manual_seed(1)
    layer = GatedLinear(IN, OUT)
    torch.manual_seed(1)
    plain = nn.Linear(IN, OUT)
    assert isinstance(layer, nn.Linear) and not list(layer.buffers())
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "scores"]
    assert torch.equal(layer.weight, plain.weight) and (layer.scores == 2).all()
    assert [name for name, _ in GatedLinear(IN, OUT, bias=False).named_parameters()] == ["weight", "scores"]
    x = torch.randn(3, IN)
    torch.testing.assert_close(layer(x), F.linear(x, plain.weight / (1 + math.exp(-2)), plain.bias))
    with torch.no_grad():
        layer.scores.zero_()
    layer.reset_parameters()
    assert (layer.scores == 2).all() and not torch.equal(layer.weight, plain.weight)
    assert repr(layer) == "GatedLinear(in_features=40, out_features=6, bias=True, kind=sigmoid, temperature=1)"
    assert layer(torch.randn(0, IN)).shape == (0, OUT)


def test_from_dense():
    plain = nn.Linear(IN, OUT, dtype=torch.float64).eval()
    plain.bias.requires_grad_(False)
    state = torch.get_rng_state()
    layer = GatedLinear.from_dense(plain, "straight_through", temperature=0.5, initial_score=1.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert (layer.kind, layer.temperature) == ("straight_through", 0.5) and (layer.scores == 1.5).all()
    assert layer.scores.dtype == torch.float64 and not layer.training and not layer.bias.requires_grad
    assert torch.equal(layer.weight, plain.weight) and layer.weight is not plain.weight
    x = torch.randn(3, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))
    with torch.no_grad():
        layer.scores.normal_()
    layer.scores.requires_grad_(False)
    again = GatedLinear.from_dense(layer)
    assert torch.equal(again.scores, layer.scores) and again.scores is not layer.scores
    assert repr(again) == repr(layer) and not again.scores.requires_grad
    other = GatedLinear.from_dense(layer, "hard_concrete")
    assert other.temperature == 2 / 3 and torch.equal(other.scores, layer.scores)
    assert (GatedLinear.from_dense(layer, initial_score=3).scores == 3).all()
    with pytest.raises(TypeError, match=r"layer must be an nn\.Linear, got Conv2d"):
        GatedLinear.from_dense(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"layer must not be masked, got MaskedLinear: its to_dense\(\) has no mask"):
        GatedLinear.from_dense(MaskedLinear(IN, OUT))
    with pytest.raises(TypeError, match=r"layer must not be gated, got GatedLinear: its harden\(\) is masked"):
        MaskedLinear.from_dense(layer)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(assign):
    layer = make("sigmoid", temperature=0.3)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "scores", "temperature"]
    twin = GatedLinear(IN, OUT)
    assert not any(twin.load_state_dict(state, assign=assign))
    x = torch.randn(2, IN)
    assert twin.temperature == 0.3 and torch.equal(twin(x), layer(x))
    plain = nn.Linear(IN, OUT)
    keys = twin.load_state_dict(plain.state_dict(), assign=assign)
    assert not keys.missing_keys and not keys.unexpected_keys
    assert torch.equal(twin.scores, layer.scores) and twin.temperature == 0.3
    assert torch.equal(twin.weight, plain.weight)
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(plain.weight, layer.weight)
    model = nn.Sequential(nn.Linear(3, IN), GatedLinear(IN, OUT))
    model.load_state_dict({**model[:1].state_dict(), **{f"1.{name}": value for name, value in state.items()}})
    assert model[1].temperature == 0.3 and "1.temperature" in model.state_dict()


def test_bad_states_are_refused():
    layer = make("sigmoid")
    before = copy.deepcopy(layer.state_dict())
    other = GatedLinear(IN, OUT).state_dict()
    for bad, message in (
        ({"temperature": torch.tensor(-1.0)}, "temperature: temperature must be positive"),
        ({"temperature": torch.ones(2)}, r"temperature must be one number, got float32 tensor \[2\]"),
        ({"temperature": "cold"}, "temperature must be a number, got str"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**other, **bad})
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch for scores"):
        layer.load_state_dict({**other, "scores": torch.ones(2, 2)})
    assert layer.temperature == 0.5
    with pytest.raises(RuntimeError, match="Unexpected"):
        layer.load_state_dict({**other, "more": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r"Missing.*weight"):
        layer.load_state_dict({"bias": layer.bias})


def test_checkpoint_helpers_find_every_entry():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model, twin = nn.Sequential(make("sigmoid", temperature=0.25)), nn.Sequential(GatedLinear(IN, OUT))
    state = get_model_state_dict(model)
    assert list(state) == ["0.weight", "0.bias", "0.scores", "0.temperature"]
    set_model_state_dict(twin, state)
    assert twin[0].temperature == 0.25 and torch.equal(twin[0].scores, model[0].scores)


@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind):
    layer = make(kind).eval()
    x = torch.randn(2, IN)
    for again in (copied(layer) for copied in COPIES):
        assert torch.equal(again(x), layer(x)) and repr(again) == repr(layer)
        again.temperature = 0.1
        with torch.no_grad():
            again.scores.zero_()
    assert layer.temperature == 0.5 and layer.scores.any()


def test_casts_and_meta():
    layer = make("hard_concrete", temperature=0.3)
    for cast in (layer.half, layer.bfloat16, layer.double, layer.float):
        cast()
        assert layer.scores.dtype == layer.weight.dtype and layer.temperature == 0.3
    for kind in KINDS:
        layer = GatedLinear(IN, OUT, device="meta", kind=kind)
        assert layer(torch.empty(3, IN, device="meta")).shape == (3, OUT)
        assert layer.l1_penalty().is_meta and layer.to_dense().weight.is_meta
        with pytest.raises(ValueError, match=r"scores must have their values here.*on meta: \[6, 40\]"):
            layer.harden()
        with pytest.raises(RuntimeError, match=r"Missing.*scores"):  # which would stay without values
            layer.load_state_dict(nn.Linear(IN, OUT).state_dict(), assign=True)
        layer.to_empty(device="cpu").reset_parameters()
        assert (layer.scores == 2).all() and layer(torch.randn(3, IN)).isfinite().all()


def test_averaging_leaves_the_temperature_alone():
    model = nn.Sequential(make("sigmoid", temperature=0.3))
    average = AveragedModel(model, use_buffers=True)
    first = model[0].scores.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model[0].scores.add_(1)
    average.update_parameters(model)
    assert average.module[0].temperature == 0.3
    torch.testing.assert_close(average.module[0].scores, first + 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_and_func(kind):
    layer = make(kind, torch.float64).eval()
    x = torch.randn(4, IN, dtype=torch.float64)
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}
    parameters["scores"] = -parameters["scores"]

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).pow(2).sum()

    flipped = copy.deepcopy(layer)
    flipped.load_state_dict(parameters, strict=False)
    flipped(x).pow(2).sum().backward()
    got = grad(loss)(parameters, x)
    for name, parameter in flipped.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)
    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    torch.testing.assert_close(per_sample["scores"].sum(0), got["scores"])


@pytest.mark.parametrize("kind", KINDS)
def test_compile_follows_the_temperature(kind):
    torch._dynamo.reset()
    layer = make(kind)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(3, IN)
    for step in range(20):
        layer.temperature = 0.9**step
        results = []
        for module in (layer, compiled):
            torch.manual_seed(step)
            y = module(x)
            results.append((y, *torch.autograd.grad(y.pow(2).sum(), layer.parameters())))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced)
    assert counter.frame_count <= 3  # as a value, not a constant


def test_inductor():
    torch._dynamo.reset()
    layer = make("hard_concrete").eval()
    x = torch.randn(3, IN)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind):
    layer = make(kind).eval()
    x = torch.randn(3, IN)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    assert "scores" in program.state_dict


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    layer = make(kind).eval()
    x = torch.randn(3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert layer.gate().dtype == torch.float32 and layer.l1_penalty().dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert layer.scores.grad.dtype == torch.float32 and layer.scores.grad.any()
