"""ChannelGate: which channels it keeps, what comes out, what gradients reach, and its state."""

from __future__ import annotations

import copy
import io
import pickle

import maskfuse
import pytest
import torch
from conftest import DTYPES
from maskfuse import channel_scatter
from maskfuse.nn import ChannelGate, GatedChannels, MaskedConv2d
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.optim.swa_utils import AveragedModel

N, C = 5, 12
NAN, INF = float("nan"), float("inf")
SHAPES = [(), (7,), (4, 3), (1, 1), (2, 3, 2)]
MODES = {"mask": {"mask": torch.arange(C) % 3 == 1}, "top-k": {"k": 4}, "threshold": {"threshold": 0.1}}


def statistic_by_hand(x, kind):
    flat = x.double().reshape(*x.shape[:2], -1)
    flat = flat.abs() if kind == "mean_abs" else flat
    return flat.mean(2) if flat.shape[2] else flat.sum(2)


def active_by_hand(x, mode, kind):
    if "mask" in mode:
        return mode["mask"].expand(x.shape[:2])
    statistic = statistic_by_hand(x, kind)
    if "threshold" in mode:
        return statistic > mode["threshold"]
    active = torch.zeros(x.shape[:2], dtype=torch.bool)
    for n, row in enumerate(statistic.tolist()):
        known = [c for c in range(len(row)) if row[c] == row[c]]
        active[n, sorted(known, key=lambda c: -row[c])[: mode["k"]]] = True
    return active


def spread(active, x):
    return active.reshape(*active.shape, *[1] * (x.dim() - 2)).expand_as(x)


def gate_by_hand(x, active):
    return torch.where(spread(active, x), x, torch.zeros((), dtype=x.dtype))


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


# -- state -------------------------------------------------------------------------------------------------


def test_state_travels():
    mask = MODES["mask"]["mask"]
    gate = ChannelGate(mask, compact=True)
    assert list(gate.state_dict()) == ["mask"] and not list(gate.buffers()) and not list(gate.parameters())
    other = ChannelGate(~mask, compact=True)
    other.load_state_dict(gate.state_dict())
    x = torch.randn(N, C, 3)
    assert torch.equal(other.mask, mask) and torch.equal(other(x), gate(x))
    state = gate.state_dict()
    state["mask"].zero_()
    assert torch.equal(gate.mask, mask)
    assert not any(other.load_state_dict({}))  # a missing entry keeps the mask
    assert torch.equal(other.mask, mask)
    assert not ChannelGate(k=3).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ChannelGate(k=3).load_state_dict(gate.state_dict())
    for bad, message in (
        (torch.ones(C), r"mask must be a bool tensor \[C\], got float32"),
        (torch.ones(C + 1, dtype=torch.bool), r"mask must have shape \[12\], got bool tensor \[13\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gate.load_state_dict({"mask": bad})
    assert torch.equal(gate.mask, mask)
    model = nn.Sequential(nn.Conv2d(3, C, 1), ChannelGate(mask))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.mask"]


def test_checkpoint_helpers_find_the_mask():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    mask = MODES["mask"]["mask"]
    model, twin = nn.Sequential(ChannelGate(mask)), nn.Sequential(ChannelGate(~mask))
    set_model_state_dict(twin, get_model_state_dict(model))
    assert torch.equal(twin[0].mask, mask)


def test_copies():
    for gate in (ChannelGate(MODES["mask"]["mask"], compact=True), ChannelGate(k=3, straight_through=True)):
        x = torch.randn(N, C, 3)
        buffer = io.BytesIO()
        torch.save(gate, buffer)
        buffer.seek(0)
        for again in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate)), torch.load(buffer, weights_only=False)):
            assert torch.equal(again(x), gate(x)) and repr(again) == repr(gate)
    gate = ChannelGate(MODES["mask"]["mask"])
    twin = copy.deepcopy(gate)
    twin.set_mask(torch.zeros(3, dtype=torch.bool))
    assert gate.mask.shape == (C,) and twin.channels.shape == (0,)


def test_moves_and_casts_leave_the_mask_alone():
    mask = MODES["mask"]["mask"]
    gate = ChannelGate(mask, compact=True)
    for move in (
        gate.half,
        gate.double,
        gate.float,
        lambda: gate.to("meta"),
    ):
        move()
        assert torch.equal(gate.mask, mask) and gate.channels.dtype == torch.int64
    assert gate(torch.randn(N, C, 2, device="meta")).shape == (N, int(mask.sum()), 2)
    gate.to_empty(device="cpu")
    assert torch.equal(gate.mask, mask)
    source = mask.clone()
    gate = ChannelGate(source)
    source.zero_()
    assert torch.equal(gate.mask, mask)
    with torch.inference_mode():
        gate.set_mask(~mask)
    x = torch.randn(N, C, 2, requires_grad=True)
    gate(x).sum().backward()
    assert torch.equal(x.grad[0, :, 0].bool(), ~mask)


def test_averaging_leaves_the_mask_alone():
    model = nn.Sequential(nn.Linear(4, C), ChannelGate(MODES["mask"]["mask"]))
    average = AveragedModel(model, use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average.module[1].mask, model[1].mask)


def test_repr():
    assert repr(ChannelGate(MODES["mask"]["mask"])) == "ChannelGate(4 of 12 channels)"
    assert repr(ChannelGate(k=4, compact=True)) == "ChannelGate(k=4, statistic=mean_abs, compact=True)"
    gate = ChannelGate(threshold=0.5, statistic="mean", straight_through=True, compact=True, max_channels=3)
    assert repr(gate) == (
        "ChannelGate(threshold=0.5, statistic=mean, straight_through=True, temperature=1, compact=True, max_channels=3)"
    )


X, M = torch.randn(N, C, 2), torch.ones(C, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ChannelGate(), ValueError, "exactly one of mask, k and threshold"),
        (lambda: ChannelGate(M, k=3), ValueError, "exactly one of mask, k and threshold"),
        (lambda: ChannelGate(M.int()), TypeError, r"mask must be a bool tensor \[C\], got int32 tensor \[12\]"),
        (lambda: ChannelGate(M[None]), ValueError, r"mask must have shape \[C\], got bool tensor \[1, 12\]"),
        (lambda: ChannelGate(k=-1), ValueError, "k must be at least 0, got -1"),
        (lambda: ChannelGate(k=0.5), TypeError, "k must be an int, got float"),
        (lambda: ChannelGate(threshold="a"), TypeError, "threshold must be a number, got str"),
        (lambda: ChannelGate(threshold=NAN), ValueError, "threshold must not be NaN"),
        (lambda: ChannelGate(k=3, statistic="max"), ValueError, "statistic must be one of mean, mean_abs, got 'max'"),
        (lambda: ChannelGate(k=3, temperature=0), ValueError, "temperature must be positive, got 0"),
        (lambda: ChannelGate(k=3, temperature=INF), ValueError, "temperature must be positive, got inf"),
        (lambda: ChannelGate(M, straight_through=True), ValueError, "straight_through needs a statistic"),
        (lambda: ChannelGate(k=3, max_channels=3), ValueError, "max_channels goes with threshold and compact"),
        (
            lambda: ChannelGate(threshold=0.0, max_channels=3),
            ValueError,
            "max_channels goes with threshold and compact",
        ),
        (
            lambda: ChannelGate(threshold=0.0, compact=True, max_channels=-3),
            ValueError,
            "max_channels must be at least",
        ),
        (lambda: ChannelGate(k=3).set_mask(M), ValueError, "it has no mask to set"),
        (
            lambda: ChannelGate(k=C + 1)(X),
            ValueError,
            r"k is 13, but input has 12 channels: float32 tensor \[5, 12, 2\]",
        ),
        (lambda: ChannelGate(k=3)(X.int()), TypeError, "input must be float32.*got int32"),
        (lambda: ChannelGate(k=3)(X[0, 0]), ValueError, r"input must have shape \[N, C, ...\]"),
        (lambda: ChannelGate(k=3)([1.0]), TypeError, "input must be a tensor, got list"),
        (lambda: ChannelGate(M)(X[:, :3]), ValueError, r"input must have shape \[N, 12, ...\] for mask, got float32"),
        (lambda: ChannelGate(M)([1.0]), TypeError, "input must be a tensor, got list"),
        (lambda: ChannelGate(M).active(X[:, :3]), ValueError, r"input must have shape \[N, 12, ...\]"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
