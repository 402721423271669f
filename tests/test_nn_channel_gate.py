"""ChannelGate: which channels it keeps, and what comes out."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from channel_gates import INF, MODES, NAN, SHAPES, C, N, active_by_hand, gate_by_hand, spread, statistic_by_hand
from conftest import DTYPES
from maskfuse import channel_scatter
from maskfuse.nn import ChannelGate, GatedChannels


@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trailing", SHAPES)
def test_against_plain_torch(mode, kind, trailing):
    mode = MODES[mode]
    x = torch.randn(N, C, *trailing, requires_grad=True)
    want = active_by_hand(x.detach(), mode, kind)
    zeros = ChannelGate(**mode, statistic=kind)
    y = zeros(x)
    assert torch.equal(y, gate_by_hand(x, want)) and torch.equal(zeros.active(x).expand(N, C), want)
    dy = torch.randn_like(y)
    y.backward(dy)
    assert torch.equal(x.grad, gate_by_hand(dy, want))
    compact = ChannelGate(**mode, statistic=kind, compact=True)
    result, dense = compact(x), x.grad
    x.grad = None
    if "mask" in mode:
        assert torch.equal(result, x[:, mode["mask"]])
        back = channel_scatter(result, compact.channels, C)
    else:
        assert isinstance(result, GatedChannels)
        assert torch.equal(result.counts, want.sum(1)) and result.values.shape[1] == want.sum(1).max()
        for n in range(N):
            assert result.channels[n, : result.counts[n]].tolist() == want[n].nonzero().flatten().tolist()
        back = channel_scatter(result.values, result.channels, C)
    assert torch.equal(back, y)
    back.backward(dy)
    assert torch.equal(x.grad, dense)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_channels_last(mode, compact):
    x = torch.randn(N, C, 6, 5)
    gate = ChannelGate(**MODES[mode], compact=compact)
    want, got = gate(x), gate(x.to(memory_format=torch.channels_last))
    if isinstance(want, GatedChannels):
        assert torch.equal(got.channels, want.channels)
        want, got = want.values, got.values
    assert want.is_contiguous() and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(want, got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
def test_dtypes(dtype, kind):
    """Half types are summed in float32: a plane whose sum overflows float16 has a finite mean."""
    x = (torch.randn(2, C, 300, 300).abs() + torch.arange(C)[:, None, None]).to(dtype)
    statistic = maskfuse.functional._channel_statistic.channel_statistic(x, kind)
    assert statistic.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(statistic.double(), statistic_by_hand(x, kind), atol=0, rtol=1e-5)
    gate = ChannelGate(k=3, statistic=kind)
    assert gate(x).dtype == dtype and gate.active(x).nonzero()[:, 1].tolist() == [9, 10, 11] * 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_a_fixed_mask_takes_any_dtype(dtype):
    mask = MODES["mask"]["mask"]
    x = torch.ones(N, C, 2, dtype=dtype)
    y = ChannelGate(mask)(x)
    assert y.dtype == dtype and torch.equal(y, gate_by_hand(x, mask.expand(N, C)))


@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
def test_pieces(kind, monkeypatch):
    """However the input is cut, the statistic and its gradient are the same."""
    statistic = maskfuse.functional._channel_statistic
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(N, C, 5, 4).to(dtype).requires_grad_()
        for piece in (1, 20, 50, 12 * 20, 30 * 20, 1 << 20):
            monkeypatch.setattr(statistic, "_PIECE", piece)
            got = statistic.channel_statistic(x, kind)
            torch.testing.assert_close(got.double(), statistic_by_hand(x, kind))
            (g,) = torch.autograd.grad(got.sum(), x)
            want = torch.ones_like(x) if kind == "mean" else x.detach().sign()
            torch.testing.assert_close(g, want / 20)


def test_ties_go_to_the_lower_index():
    x = torch.tensor([[1.0, 3, 2, 3, 2, 2], [0, 0, 0, 0, 0, 0]])
    assert ChannelGate(k=4).active(x).int().tolist() == [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("mode", [{"k": 4}, {"threshold": 0.5}])
@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
def test_nan_and_infinity(mode, compact, straight_through, kind):
    """NaN is never active; what is inactive does not leak, nor in the gradient."""
    x = torch.randn(3, C, 2, 2)
    x[0, 1, 0, 0], x[0, 5, 1, 1] = NAN, INF
    x[1] = NAN
    x[1, 3] = 2.0
    x[2, 7] = -INF
    x.requires_grad_()
    gate = ChannelGate(**mode, statistic=kind, compact=compact, straight_through=straight_through)
    active = gate.active(x)
    assert torch.equal(active, active_by_hand(x.detach(), mode, kind))
    assert active[0, 5] and not active[0, 1] and active[1].nonzero().flatten().tolist() == [3]
    y = gate(x)
    if compact:
        assert y.counts[1] == 1 and not y.values[1, 1:].any()
        y = channel_scatter(y.values, y.channels, C)
    assert torch.equal(y, gate_by_hand(x, active))
    finite = torch.where(y.isfinite(), y, 0.0)
    finite.pow(2).sum().backward()
    assert torch.isfinite(x.grad).all()
    # No statistic, no straight-through gradient: those channels get their own, or none.
    odd = ~torch.isfinite(statistic_by_hand(x.detach(), kind))
    assert torch.equal(x.grad[odd], torch.where(spread(active, x), 2 * finite, 0.0)[odd])


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("k", [0, C])
def test_none_and_all(k, compact, straight_through):
    x = torch.randn(N, C, 2, 2, requires_grad=True)
    y = ChannelGate(k=k, compact=compact, straight_through=straight_through)(x)
    if compact:
        assert y.values.shape == (N, k, 2, 2) and y.channels.shape == (N, k) and y.counts.tolist() == [k] * N
        y = channel_scatter(y.values, y.channels, C)
    assert torch.equal(y, x if k else torch.zeros_like(x)) and y.data_ptr() != x.data_ptr()
    y.sum().backward()
    if not straight_through:
        assert torch.equal(x.grad, torch.full_like(x, float(k > 0)))
    for mask in (torch.zeros(C, dtype=torch.bool), torch.ones(C, dtype=torch.bool)):
        y = ChannelGate(mask, compact=compact)(x)
        assert torch.equal(y, x[:, mask] if compact else x * mask[:, None, None]) and y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("shape", [(0, C, 3, 3), (N, 0, 3, 3), (N, C, 0, 3), (0, 0), (N, C, 2, 0, 1)])
@pytest.mark.parametrize("kind", ["mean", "mean_abs"])
def test_empty(shape, compact, kind):
    x = torch.zeros(shape, requires_grad=True)
    gates = [ChannelGate(torch.arange(shape[1]) % 2 == 0, compact=compact)]
    for through in (False, True):
        options = {"statistic": kind, "compact": compact, "straight_through": through}
        gates += [ChannelGate(k=min(2, shape[1]), **options), ChannelGate(threshold=0.0, **options)]
    for gate in gates:
        y = gate(x)
        if isinstance(y, GatedChannels):
            y = channel_scatter(y.values, y.channels, shape[1])
        elif compact:
            y = channel_scatter(y, gate.channels, shape[1])
        assert y.shape == shape
        (g,) = torch.autograd.grad(y.sum(), x)
        assert g.shape == shape
    # A channel without elements has statistic 0.
    if 0 in shape[2:]:
        assert not ChannelGate(threshold=0.0, statistic=kind).active(x).any()
        assert ChannelGate(threshold=-0.1, statistic=kind).active(x).all()


def test_max_channels():
    x = torch.randn(N, C, 2, 2)
    active = ChannelGate(threshold=0.5).active(x)
    for most in (0, 3, C, C + 5):
        y = ChannelGate(threshold=0.5, compact=True, max_channels=most)(x)
        assert y.values.shape == (N, min(most, C), 2, 2) and y.channels.shape == (N, min(most, C))
        assert torch.equal(y.counts, active.sum(1).clamp(max=most))
        kept = active & (active.cumsum(1) <= most)
        assert torch.equal(channel_scatter(y.values, y.channels, C), gate_by_hand(x, kept))
