"""Bypass by chance and by a learned gate: whom they skip, expected values, straight-through gradients."""

from __future__ import annotations

import pytest
import torch
from bypassed import ACTIVE, Counted, D, FirstLogit, N, choose_by_hand, first_logit, residual, skipped_by_hand
from maskfuse.nn import Bypass
from torch import nn

# -- by chance ---------------------------------------------------------------------------------------------


def test_stochastic_depth_of_a_batch():
    module = Counted(residual())
    bypass = Bypass(module, p=0.3)
    x = torch.randn(4, D)
    torch.manual_seed(5)
    outputs = [bypass(x) for _ in range(400)]
    ran = [torch.equal(y, module.layer(x)) for y in outputs]
    assert all(run or y is x for run, y in zip(ran, outputs, strict=True))
    assert module.rows == [4] * sum(ran) and 240 <= sum(ran) <= 320  # 280 give or take four standard deviations
    torch.manual_seed(5)
    assert [bypass(x) is not x for _ in range(400)] == ran


def test_stochastic_depth_of_samples():
    module = Counted(residual())
    bypass = Bypass(module, p=0.3, per_sample=True)
    x = torch.randn(1000, D)
    torch.manual_seed(5)
    y = bypass(x)
    active = (y != x).any(1)
    torch.testing.assert_close(y, choose_by_hand(active, module.layer(x), x))
    assert module.rows == [int(active.sum())] and 640 <= module.rows[0] <= 760
    torch.manual_seed(5)
    assert torch.equal(bypass(x), y) and not torch.equal(bypass(x), y)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", ["identity", "zeros", "module"])
@pytest.mark.parametrize("scale", ["eval", "train", "none"])
def test_expected_values(scale, kind, per_sample):
    """What training gives on the average is what eval mode gives, unless nothing is scaled."""
    p = 0.4
    skip = nn.Linear(D, D) if kind == "module" else kind
    bypass = Bypass(nn.Linear(D, D), p=p, scale=scale, per_sample=per_sample, skipped=skip).double()
    x = torch.randn(1, D, dtype=torch.float64)
    run, around = bypass.module(x), skipped_by_hand(skip, x)
    shortened = around + (1 - p) * (run - around)
    active = around + (run - around) / (1 - p) if scale == "train" else run
    before = torch.get_rng_state()
    torch.testing.assert_close(bypass.eval()(x), shortened if scale == "eval" else run)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    bypass.train()
    outputs = bypass(x.expand(2000, D)) if per_sample else torch.cat([bypass(x) for _ in range(2000)])
    on = torch.isclose(outputs, active).all(1)
    off = torch.isclose(outputs, around).all(1)
    assert (on ^ off).all()
    share = on.double().mean().item()
    assert share == pytest.approx(1 - p, abs=4.5 * 0.011)
    expected = share * active + (1 - share) * around
    torch.testing.assert_close(outputs.mean(0, keepdim=True), expected)
    if scale != "none":  # by the share that was drawn, not by luck
        torch.testing.assert_close((1 - p) * active + p * around, bypass.eval()(x))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("scale", ["eval", "train", "none"])
def test_certain_probabilities(scale, per_sample):
    module = Counted(nn.Linear(D, D))
    x = torch.randn(50, D)
    always = Bypass(module, p=0, scale=scale, per_sample=per_sample)
    assert torch.equal(always(x), module.layer(x)) and torch.equal(always.eval()(x), module.layer(x))
    assert module.rows == [50, 50]
    never = Bypass(module, p=1.0, scale=scale, per_sample=per_sample)
    assert all(torch.equal(never(x), x) for _ in range(20)) and module.rows == [50, 50]
    never.eval()(x)
    assert len(module.rows) == (2 if scale == "eval" else 3)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", ["identity", "zeros", "module"])
def test_gradients_of_scaled_samples(kind, per_sample):
    skip = nn.Linear(D, D) if kind == "module" else kind
    bypass = Bypass(nn.Linear(D, D), p=0.25, scale="train", per_sample=per_sample, skipped=skip).double()
    x = torch.randn(20, D, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    y = bypass(x)
    run, around = bypass.module(x), skipped_by_hand(skip, x)
    active = ~torch.isclose(y, around).all(1)
    assert active.any()
    want = choose_by_hand(active, around + (run - around) / 0.75, around)
    torch.testing.assert_close(y, want)
    inputs = [x, *bypass.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(v.pow(2).sum(), inputs) for v in (y, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_skipped_is_made_once_where_it_scales_the_others():
    module, other = Counted(nn.Linear(D, D)), Counted(nn.Linear(D, D))
    Bypass(module, p=0.5, scale="train", per_sample=True, skipped=other)(torch.randn(40, D))
    Bypass(module, gate=FirstLogit(), skipped=other)(torch.randn(40, D))
    assert other.rows == [40, 40] and all(0 < count < 40 for count in module.rows)


def test_what_the_caller_says_goes_before_chance():
    module = Counted(nn.Linear(D, D))
    bypass = Bypass(module, p=0.5, scale="train", per_sample=True)
    x = torch.randn(N, D)
    before = torch.get_rng_state()
    assert torch.equal(bypass(x, True), module.layer(x)) and bypass(x, False) is x
    torch.testing.assert_close(bypass(x, ACTIVE), choose_by_hand(ACTIVE, module.layer(x), x))
    bypass.active = False
    assert bypass(x) is x and torch.equal(torch.get_rng_state(), before)


def test_checkpointing_repeats_the_draw():
    from torch.utils.checkpoint import checkpoint

    bypass = Bypass(residual(), p=0.5, per_sample=True)
    x = torch.randn(30, D, requires_grad=True)
    results = []
    for run in (bypass, lambda x: checkpoint(bypass, x, use_reentrant=False)):
        torch.manual_seed(4)
        y = run(x)
        results.append((y, *torch.autograd.grad(y.pow(2).sum(), [x, *bypass.parameters()])))
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again)


# -- by a learned gate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["identity", "zeros", "module"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("keepdim", [False, True])
def test_gate(kind, dense, keepdim):
    """The value is the module's or the skipped one's; the gradient that of a sigmoid between them."""
    temperature = 0.7
    module, other = Counted(nn.Linear(D, D)), Counted(nn.Linear(D, D))
    skip = other if kind == "module" else kind
    gate = FirstLogit(keepdim)
    bypass = Bypass(module, gate=gate, temperature=temperature, dense_gradient=dense, skipped=skip).double()
    x = torch.randn(12, D, dtype=torch.float64, requires_grad=True)
    active = first_logit(x.detach()) > 0
    count = int(active.sum())
    assert 0 < count < 12
    y = bypass(x)
    assert module.rows == [12 if dense else count]
    run, around = module.layer(x), skipped_by_hand(other.layer if kind == "module" else kind, x)
    assert torch.equal(y[active], bypass.module(x[active]))
    torch.testing.assert_close(y, choose_by_hand(active, run, around))
    soft = torch.sigmoid(gate.slope * first_logit(x) / temperature)[:, None]
    slope = (soft - soft.detach()) * (run - around).detach()
    if not dense:  # what was skipped is not known
        slope = torch.where(active[:, None], slope, 0.0)
    want = choose_by_hand(active, run, around) + slope
    inputs = [x, *bypass.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(v.pow(2).sum(), inputs) for v in (y, want)), strict=True):
        torch.testing.assert_close(ours, theirs)
    # In eval mode, and where no gradient is asked for, a gate skips whatever it may learn from.
    for context, training in ((torch.enable_grad, False), (torch.no_grad, True)):
        module.rows.clear()
        with context():
            torch.testing.assert_close(bypass.train(training)(x), y)
        assert module.rows == [count]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_gates_that_are_all_open_or_shut(offset, dense):
    class Offset(FirstLogit):
        def forward(self, input):
            return super().forward(input) + offset

    module = Counted(nn.Linear(D, D))
    bypass = Bypass(module, gate=Offset(), dense_gradient=dense)
    x = torch.randn(N, D, requires_grad=True)
    y = bypass(x)
    assert torch.equal(y, module.layer(x) if offset > 0 else x)
    assert module.rows == ([N] if offset > 0 or dense else [])
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_gate_values_are_exact_and_nan_is_shut():
    bypass = Bypass(nn.Identity(), gate=FirstLogit(), skipped="zeros")
    x = torch.tensor([[1.0, 3e38], [float("nan"), 1.0], [0.0, 1.0], [1e-30, float("inf")]], requires_grad=True)
    assert bypass(x).tolist() == [x[0].tolist(), [0, 0], [0, 0], x[3].tolist()]


def test_gate_gradients_are_differentiable():
    bypass = Bypass(nn.Sequential(nn.Linear(D, D), nn.Tanh()), gate=FirstLogit(), dense_gradient=True).double()
    x = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(bypass(x).pow(2).sum(), bypass.gate.slope, create_graph=True)
    second = torch.autograd.grad(first, [x, *bypass.module.parameters()])
    # slope' = sum(2 y (run - x)) s (1 - s) x0, with y, run and s as functions of x.
    active = (first_logit(x) > 0).detach()
    run, soft = bypass.module(x), torch.sigmoid(bypass.gate.slope * first_logit(x))
    # The value of y depends on the gate by the straight-through slope.
    y = choose_by_hand(active, run, x) + ((soft - soft.detach())[:, None] * (run - x).detach())
    by_hand = ((2 * y * (run - x)).sum(1) * soft * (1 - soft) * first_logit(x)).sum()
    torch.testing.assert_close(first, by_hand)
    for ours, theirs in zip(second, torch.autograd.grad(by_hand, [x, *bypass.module.parameters()]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dense", [False, True])
def test_a_gate_learns_whom_to_skip(dense):
    """The module helps samples of one kind and harms the others."""
    gate = nn.Linear(2, 1)
    nn.init.zeros_(gate.weight)
    nn.init.constant_(gate.bias, 0.5)
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(-torch.eye(2))
        module.bias.zero_()
    bypass = Bypass(module.requires_grad_(False), gate=gate, dense_gradient=dense)
    optimizer = torch.optim.Adam(gate.parameters(), 0.05)
    for _ in range(150):
        x = torch.randn(64, 2)
        target = torch.where(x[:, :1] > 0, -x, x)
        optimizer.zero_grad()
        (bypass(x) - target).pow(2).mean().backward()
        optimizer.step()
    x = torch.randn(500, 2)
    assert ((gate(x)[:, 0] > 0) == (x[:, 0] > 0)).double().mean() > (0.9 if dense else 0.7)
