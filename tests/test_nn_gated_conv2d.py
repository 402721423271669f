"""GatedConv2d as an nn.Conv2d: gates, padding modes, groups, memory formats, gradients, hardening, state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import DTYPES
from copies import pickled
from maskfuse import Mask
from maskfuse.nn import GatedConv2d, MaskedConv2d
from torch import nn
from torch.nn import functional as F

KINDS = ["sigmoid", "straight_through", "hard_concrete"]
SHAPE = (8, 6, 3, 3)


def make(kind, *args, **options):
    """A layer of 6 channels with scores on both sides of 0."""
    layer = GatedConv2d(6, 8, *(args or (3,)), kind=kind, **options)
    with torch.no_grad():
        layer.scores.copy_(3 * torch.randn(layer.scores.shape))
    return layer


def gate_by_hand(layer):
    """The gate in eval mode, in float64."""
    scores = layer.scores.detach().double()
    if layer.kind == "hard_concrete":
        return (1.2 / (1 + (-scores).exp()) - 0.1).clamp(0, 1)
    if layer.kind == "straight_through":
        return (scores > 0).double()
    return 1 / (1 + (-scores / layer.temperature).exp())


@pytest.fixture
def x():
    return torch.randn(2, 6, 9, 8)


def tolerance(dtype):
    size = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    return {"atol": size, "rtol": size}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_eval_against_the_formulas(kind, dtype, x):
    layer = make(kind, dtype=dtype, temperature=0.5, padding=1).eval()
    y = layer(x.to(dtype))
    weight = layer.weight.double() * gate_by_hand(layer)
    want = F.conv2d(x.to(dtype).double(), weight, layer.bias.double(), padding=1)
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y.double(), want, **tolerance(dtype))
    torch.testing.assert_close(layer.to_dense()(x.to(dtype)).double(), want, **tolerance(dtype))
    assert layer(x[0].to(dtype)).shape == want.shape[1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": (2, 1), "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "replicate"},
        {"padding": "same"},
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "bias": False},
    ],
    ids=str,
)
def test_every_argument_and_gradient(kind, options, x):
    """Against a plain layer that is given the gated weight, with the same draws."""
    layer = make(kind, dtype=torch.float64, **options)
    plain = nn.Conv2d(6, 8, 3, dtype=torch.float64, **options)
    torch.manual_seed(3)
    a, b = x.double().requires_grad_(), x.double().requires_grad_()
    y = layer(a)
    torch.manual_seed(3)
    weight = layer.weight * layer.gate()
    want = plain._conv_forward(b, weight, layer.bias)
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, [a, *layer.parameters()], upstream)
    for ours, theirs in zip(got, torch.autograd.grad(want, [b, *layer.parameters()], upstream), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert got[-1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(kind, x):
    layer = make(kind).eval()
    want, hardened = layer(x), layer.harden()
    layer = layer.to(memory_format=torch.channels_last)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-4)
    twin = layer.harden()
    assert twin.weight.is_contiguous() and twin.mask == hardened.mask and torch.equal(twin.weight, hardened.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"groups": 2, "padding": 2, "padding_mode": "circular"}], ids=str)
def test_harden(kind, options, x):
    layer = make(kind, **options).eval()
    for threshold in (0.0, 0.5):
        twin = layer.harden(threshold)
        gate = gate_by_hand(layer)
        assert type(twin) is MaskedConv2d and not twin.training and twin.padding_mode == layer.padding_mode
        assert twin.mask == Mask.from_dense(gate > threshold) and twin.mask.active > 0
        kept = torch.where(gate > threshold, layer.weight.detach() * gate, 0.0).float()
        torch.testing.assert_close(twin.weight.detach(), kept, atol=1e-6, rtol=1e-5)
        agrees = kind == "straight_through" or threshold == 0
        assert torch.allclose(twin(x), layer(x), atol=1e-5, rtol=1e-4) == agrees


def test_is_a_conv2d(x):
    torch.manual_seed(1)
    layer = GatedConv2d(6, 8, 3, padding=1)
    torch.manual_seed(1)
    plain = nn.Conv2d(6, 8, 3, padding=1)
    assert isinstance(layer, nn.Conv2d) and not list(layer.buffers())
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "scores"]
    assert torch.equal(layer.weight, plain.weight) and layer.scores.shape == SHAPE
    torch.testing.assert_close(layer(x), F.conv2d(x, plain.weight / (1 + math.exp(-2)), plain.bias, padding=1))
    assert repr(layer).endswith("padding=(1, 1), kind=sigmoid, temperature=1)")
    assert layer(torch.randn(0, 6, 9, 8)).shape == (0, 8, 9, 8)


def test_from_dense_and_state(x):
    plain = nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2).double().eval()
    layer = GatedConv2d.from_dense(plain, "straight_through")
    assert not layer.training and torch.equal(layer.weight, plain.weight) and layer.weight is not plain.weight
    torch.testing.assert_close(layer(x.double()), plain(x.double()))
    assert not any(layer.load_state_dict(plain.state_dict()))
    with torch.no_grad():
        layer.scores.normal_()
    layer.temperature = 0.25
    other = GatedConv2d.from_dense(plain, "straight_through")
    assert list(layer.state_dict()) == ["weight", "bias", "scores", "temperature"]
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickled(layer), GatedConv2d.from_dense(layer)):
        assert twin.temperature == 0.25 and torch.equal(twin(x.double()), layer(x.double()))
    torch.testing.assert_close(layer.to_dense()(x.double()), layer(x.double()))
    with pytest.raises(TypeError, match=r"layer must be an nn\.Conv2d, got Linear"):
        GatedConv2d.from_dense(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="layer must not be masked, got MaskedConv2d"):
        GatedConv2d.from_dense(MaskedConv2d(6, 8, 3))
    with pytest.raises(TypeError, match="layer must not be gated, got GatedConv2d"):
        MaskedConv2d.from_dense(layer)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_and_export(kind, x):
    torch._dynamo.reset()
    layer = make(kind, padding=1, padding_mode="circular")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for module in (layer, compiled):
        torch.manual_seed(1)
        y = module(x)
        results.append((y, *torch.autograd.grad(y.pow(2).sum(), layer.parameters())))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)
    layer.eval()
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_meta(kind, x):
    layer = make(kind).eval()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.05)
    layer = GatedConv2d(6, 8, 3, kind=kind, device="meta")
    assert layer(x.to("meta")).shape == (2, 8, 7, 6)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(x).isfinite().all() and (layer.scores == 2).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GatedConv2d(6, 8, 3, kind="hard"), ValueError, "kind must be one of sigmoid"),
        (lambda: GatedConv2d(6, 8, 3, temperature=-2), ValueError, "temperature must be positive"),
        (lambda: GatedConv2d(6, 8, 3).harden(2), ValueError, r"threshold must be at least 0 and below 1, got 2\.0"),
        (
            lambda: GatedConv2d(6, 8, 3)(torch.randn(2, 5, 9, 9)),
            ValueError,
            r"input must have shape \[batch, 6, height",
        ),
        (
            lambda: GatedConv2d(6, 8, 3, kind="hard_concrete")(torch.randn(2, 6, 2, 9)),
            ValueError,
            "must not be empty or exceed",
        ),
        (lambda: GatedConv2d(6, 8, 3)(torch.randn(2, 6, 9, 9).half()), TypeError, "must have one dtype"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
