"""ChannelGate: what gradients reach, compiled and cast too."""

from __future__ import annotations

import pytest
import torch
from channel_gates import MODES, C, N, active_by_hand, spread, statistic_by_hand
from maskfuse import channel_scatter
from maskfuse.nn import ChannelGate, GatedChannels, MaskedConv2d
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
@pytest.mark.parametrize("mode", [{"k": 4}, {"threshold": 0.2}])
@pytest.mark.parametrize("trailing", [(), (3, 2)])
def test_straight_through(mode, kind, compact, trailing):
    """The gradient of x * gate where the gate's value is 1 or 0 and its slope the sigmoid's."""
    temperature = 0.7
    x = torch.randn(N, C, *trailing, dtype=torch.float64)
    gate = ChannelGate(**mode, statistic=kind, compact=compact, straight_through=True, temperature=temperature)
    active = active_by_hand(x, mode, kind)
    coefficient = torch.randn_like(x)

    def ours(x):
        y = gate(x)
        y = channel_scatter(y.values, y.channels, C) if compact else y
        return (y * coefficient + y.pow(2)).sum()

    def theirs(x):
        statistic = statistic_by_hand(x, kind)
        level = mode["threshold"] if "k" not in mode else statistic.detach().sort(1).values[:, -mode["k"], None]
        soft = torch.sigmoid((statistic - level) / temperature)
        hard = active.double() + soft - soft.detach()
        if compact:  # inactive channels are not there
            hard = torch.where(active, hard, 0.0)
        y = torch.where(spread(active, x), x, 0.0) + x.detach() * spread(hard - hard.detach(), x)
        return (y * coefficient + y.pow(2)).sum()

    results = []
    for function in (ours, theirs):
        a = x.clone().requires_grad_()
        loss = function(a)
        results.append((loss, *torch.autograd.grad(loss, a)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert not torch.equal(results[0][1], torch.where(spread(active, x), results[0][1], 0.0)) or compact
    torch.testing.assert_close(grad(ours)(x), results[1][1])


def test_straight_through_learns_to_open_a_channel():
    """A closed channel behind a layer gets a gradient, which a constant mask would not give it."""
    torch.manual_seed(1)
    for straight in (True, False):
        layer = nn.Linear(4, 2)
        with torch.no_grad():
            layer.bias.copy_(torch.tensor([1.0, -0.5]))
            layer.weight.mul_(0.01)
        gate = ChannelGate(threshold=0.0, statistic="mean", straight_through=straight)
        gate(layer(torch.randn(8, 4)))[:, 1].sum().backward()
        assert bool(layer.bias.grad[1] != 0) == straight


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, compact):
    gate = ChannelGate(**MODES[mode], compact=compact)
    x = torch.randn(2, C, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x):
        y = gate(x)
        return y.values if isinstance(y, GatedChannels) else y

    assert gradcheck(run, x, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(lambda x: run(x).pow(2), x, fast_mode=True)
    if mode != "threshold" or not compact:  # whose shape depends on values
        assert torch.equal(vmap(run)(x[None].detach()), run(x)[None])


def test_no_copy_of_the_input_is_kept():
    """A constant mask keeps [N, C] for the backward pass, not the activation."""
    x = torch.randn(4, 64, 28, 28, requires_grad=True)
    for gate in (ChannelGate(k=32), ChannelGate(k=32, compact=True)):
        saved: list[int] = []

        def count(t, saved=saved):
            saved.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            gate(x)
        assert sum(saved) < 4 * 64 * 3


@pytest.mark.parametrize(
    "options",
    [
        {"mask": torch.arange(C) % 3 == 1},
        {"mask": torch.arange(C) % 3 == 1, "compact": True},
        {"k": 4},
        {"k": 4, "compact": True},
        {"k": 4, "compact": True, "straight_through": True},
        {"k": 4, "straight_through": True, "statistic": "mean"},
        {"threshold": 0.5},
        {"threshold": 0.5, "compact": True, "max_channels": 6},
        {"threshold": 0.5, "straight_through": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(options, compiler):
    torch._dynamo.reset()
    gate = ChannelGate(**options)
    compiled = torch.compile(gate, fullgraph=True, backend=compiler)
    for size in ((3, C, 4, 5), (4, C, 6, 5)):
        results = []
        x = torch.randn(size)
        for module in (gate, compiled):
            a = x.clone().requires_grad_()
            y = module(a)
            y = y if isinstance(y, GatedChannels) else (y,)
            y[0].pow(2).sum().backward()
            results.append((*y, a.grad))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced)


def test_autocast():
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        for through in (False, True):
            y = ChannelGate(k=4, straight_through=through)(x)
            assert y.dtype == torch.float32
            y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_in_front_of_a_convolution():
    x = torch.randn(4, C, 8, 8)
    gate, conv = ChannelGate(k=5), MaskedConv2d(C, 7, 3)
    torch.testing.assert_close(conv(x, channels=gate.active(x)), conv(gate(x)), atol=1e-5, rtol=1e-4)
