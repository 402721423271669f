"""GatedLinear: gates against their formulas, gradients, the penalty and hardening; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DTYPES
from maskfuse import Mask
from maskfuse.nn import GatedLinear, MaskedLinear
from torch import nn
from torch.nn import functional as F

OUT, IN = 6, 40
KINDS = ["sigmoid", "straight_through", "hard_concrete"]


def make(kind, dtype=torch.float32, temperature=0.5, **options):
    """A layer with scores on both sides of 0, some of them far out."""
    layer = GatedLinear(IN, OUT, kind=kind, temperature=temperature, dtype=dtype, **options)
    with torch.no_grad():
        layer.scores.copy_(3 * torch.randn(OUT, IN))
    return layer


def gate_by_hand(layer):
    """The gate in eval mode, in float64."""
    scores = layer.scores.detach().double()
    if layer.kind == "hard_concrete":
        return (1.2 / (1 + (-scores).exp()) - 0.1).clamp(0, 1)
    if layer.kind == "straight_through":
        return (scores > 0).double()
    return 1 / (1 + (-scores / layer.temperature).exp())


def tolerance(dtype):
    return {
        torch.float64: {"atol": 1e-10, "rtol": 1e-10},
        torch.float32: {"atol": 1e-5, "rtol": 1e-5},
        torch.float16: {"atol": 1e-2, "rtol": 1e-2},
        torch.bfloat16: {"atol": 5e-2, "rtol": 5e-2},
    }[dtype]


# -- gates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_eval_against_the_formulas(kind, dtype):
    layer = make(kind, dtype).eval()
    want = gate_by_hand(layer)
    gate = layer.gate()
    assert gate.dtype == dtype and gate.shape == (OUT, IN)
    torch.testing.assert_close(gate.double(), want, atol=tolerance(dtype)["atol"] / 2, rtol=0)
    x = torch.randn(3, 2, IN).to(dtype)
    y = layer(x)
    exact = F.linear(x.double(), layer.weight.double() * want, layer.bias.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, **tolerance(dtype))
    assert torch.equal(layer(x), y)  # nothing is drawn in eval mode
    dense = layer.to_dense()
    assert type(dense) is nn.Linear and not dense.training
    torch.testing.assert_close(dense(x).double(), exact, **tolerance(dtype))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, temperature):
    """Of input, weight, bias and scores: what plain PyTorch says of the formula, with the same draws."""
    layer = make(kind, torch.float64, temperature)
    x = torch.randn(5, IN, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    y = layer(x)
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    torch.manual_seed(3)
    scores = layer.scores
    soft = torch.sigmoid(scores / temperature)
    if kind == "straight_through":
        soft = (scores > 0).double() + soft - soft.detach()
    elif kind == "hard_concrete":
        u = torch.rand(OUT, IN, dtype=torch.float64)
        s = torch.sigmoid((u.log() - (1 - u).log() + scores) / temperature)
        soft = (1.2 * s - 0.1).clamp(0, 1)
        assert (soft == 0).any() and (soft == 1).any() and ((soft > 0) & (soft < 1)).any()
    by_hand = F.linear(x, layer.weight * soft, layer.bias)
    torch.testing.assert_close(y, by_hand)
    for ours, theirs in zip(got, torch.autograd.grad(by_hand, [x, *layer.parameters()], upstream), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_straight_through_gates_are_binary(dtype):
    layer = make("straight_through", dtype)
    with torch.no_grad():
        layer.scores[0, :4] = torch.tensor([0.0, 1e-7, -1e-7, -0.0])
    gate = layer.gate()
    assert torch.equal(gate, (layer.scores > 0).to(dtype)) and gate.unique().tolist() == [0, 1]
    layer(torch.randn(5, IN).to(dtype)).float().pow(2).sum().backward()
    closed = gate.detach() == 0
    assert not layer.weight.grad[closed].any() and layer.weight.grad[~closed].any()
    assert layer.scores.grad[closed].any()  # a closed gate learns


def test_hard_concrete_draws():
    layer = make("hard_concrete", temperature=2 / 3)
    x = torch.randn(3, IN)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    before = torch.get_rng_state()
    layer.eval()(x)
    layer.harden()
    layer.train().l1_penalty()
    layer.to_dense()
    assert torch.equal(torch.get_rng_state(), before)  # none of these draws


def test_hard_concrete_penalty_is_the_share_of_gates_that_are_not_zero():
    layer = GatedLinear(1000, 400, kind="hard_concrete")
    assert layer.temperature == 2 / 3
    for score in (-3.0, 0.0, 2.0):
        nn.init.constant_(layer.scores, score)
        gate = layer.gate()
        expected = layer.l1_penalty().item() / gate.numel()
        assert expected == pytest.approx(1 / (1 + math.exp(-(score - 2 / 3 * math.log(0.1 / 1.1)))), rel=1e-5)
        # Of 400000 draws the share is within 5 standard deviations.
        assert (gate > 0).double().mean().item() == pytest.approx(expected, abs=5 * 0.5 / 632)
        assert gate.mean().item() <= expected and gate.min() >= 0 and gate.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_l1_penalty(kind, dtype):
    layer = make(kind, dtype)
    penalty = layer.l1_penalty()
    scores = layer.scores.detach().double()
    if kind == "hard_concrete":
        soft = torch.sigmoid(scores - 0.5 * math.log(0.1 / 1.1))
        value, slope = soft.sum(), soft * (1 - soft)
    else:
        soft = torch.sigmoid(scores / 0.5)
        value, slope = gate_by_hand(layer).sum(), soft * (1 - soft) / 0.5
    assert penalty.shape == () and penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(penalty.double(), value, atol=0, rtol=1e-5)
    penalty.backward()
    torch.testing.assert_close(layer.scores.grad.double(), slope, **tolerance(dtype))
    assert layer.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_penalty_and_temperature_train_a_mask(kind):
    """Inputs that the target does not depend on lose their gates; the others keep them."""
    layer = GatedLinear(12, 3, kind=kind, temperature=1.0, initial_score=1.0)
    target = nn.Linear(4, 3)
    nn.init.uniform_(target.weight, 1.0, 2.0)
    gates, others = [layer.scores], [layer.weight, layer.bias]
    optimizer = torch.optim.Adam([{"params": gates, "lr": 0.05}, {"params": others, "lr": 0.03}])
    for step in range(250):
        layer.temperature = max(0.3, 0.99**step)
        x = torch.randn(64, 12)
        loss = F.mse_loss(layer(x), target(x[:, :4]).detach()) + 0.05 * layer.l1_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = layer.harden().mask.dense()
    assert mask[:, :4].all() and not mask[:, 4:].any()


# -- hardening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_harden(kind, dtype):
    layer = make(kind, dtype).eval()
    layer.bias.requires_grad_(False)
    for threshold in (0.0, 0.25, 0.5, 0.9):
        twin = layer.harden(threshold)
        gate = gate_by_hand(layer)
        assert type(twin) is MaskedLinear and not twin.training and not twin.bias.requires_grad
        assert twin.mask == Mask.from_dense(gate > threshold) and twin.weight.dtype == dtype
        want = torch.where(gate > threshold, layer.weight.detach().double() * gate, 0.0)
        torch.testing.assert_close(twin.weight.double(), want, **tolerance(dtype))
        if kind == "straight_through":  # binary gates leave the weight as it is
            assert torch.equal(twin.weight, torch.where(layer.scores > 0, layer.weight, 0))
        x = torch.randn(4, IN).to(dtype)
        torch.testing.assert_close(
            twin(x), F.linear(x.double(), want, layer.bias.double()).to(dtype), **tolerance(dtype)
        )
        agrees = kind == "straight_through" or threshold == 0
        close = torch.allclose(twin(x), layer(x), **tolerance(dtype))
        assert close if agrees else not torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight.fill_(1.0)
    assert not (layer.weight == 1).any()  # nothing is shared


def test_harden_keeps_out_what_closed_gates_hide():
    layer = make("straight_through")
    with torch.no_grad():
        layer.weight[layer.scores <= 0] = float("nan")
    assert torch.isfinite(layer.harden()(torch.randn(2, IN))).all()


def test_annealed_sigmoid_gates_agree_with_their_mask():
    layer = make("sigmoid", temperature=1e-3).eval()
    with torch.no_grad():
        layer.scores.add_(layer.scores.sign() * 0.1)
    x = torch.randn(4, IN)
    torch.testing.assert_close(layer.harden()(x), layer(x))
    assert 0 < layer.harden().mask.density < 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GatedLinear(3, 2, kind="soft"), ValueError, "kind must be one of sigmoid, .*got 'soft'"),
        (lambda: GatedLinear(3, 2, temperature=0), ValueError, r"temperature must be positive, got 0\.0"),
        (lambda: GatedLinear(3, 2, temperature=float("inf")), ValueError, "temperature must be positive, got inf"),
        (lambda: GatedLinear(3, 2, temperature="1"), TypeError, "temperature must be a number, got str"),
        (lambda: GatedLinear(3, 2, initial_score=float("nan")), ValueError, "initial_score must not be NaN"),
        (
            lambda: GatedLinear(3, 2, initial_score=torch.ones(2)),
            TypeError,
            "initial_score must be a number, got float32",
        ),
        (lambda: setattr(GatedLinear(3, 2), "temperature", -1), ValueError, "temperature must be positive"),
        (lambda: GatedLinear(3, 2).harden(1.0), ValueError, r"threshold must be at least 0 and below 1, got 1\.0"),
        (lambda: GatedLinear(3, 2).harden(-0.1), ValueError, "threshold must be at least 0"),
        (lambda: GatedLinear(3, 2).harden(True), TypeError, "threshold must be a number, got bool"),
        (
            lambda: GatedLinear(3, 2)(torch.randn(4)),
            ValueError,
            r"input must have shape \[..., 3\] for weight \[2, 3\]",
        ),
        (
            lambda: GatedLinear(3, 2, kind="hard_concrete")(torch.randn(4)),
            ValueError,
            r"input must have shape \[..., 3\] for weight \[2, 3\], got \[4\]",
        ),
        (lambda: GatedLinear(3, 2)(torch.randn(3).double()), TypeError, "input and weight must have one dtype"),
        (lambda: GatedLinear(3, 2)([1.0]), TypeError, "input must be a tensor, got list"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
