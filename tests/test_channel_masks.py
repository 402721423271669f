"""Channel masks on the inputs of masked_conv2d and masked_linear: both ways to compute against the reference."""

from __future__ import annotations

import sys
from functools import partial

import maskfuse
import pytest
import torch
from chosen_channels import IN, OUT, N, masks
from chosen_channels import way as way
from conftest import DTYPES
from maskfuse import Mask, masked_conv2d, masked_linear, reference
from maskfuse.functional import _channel_masks

KINDS = list(masks(N, IN))


def weight_masks(shape):
    return {
        "full": Mask.full(shape),
        "random": Mask.random(shape, 0.3),
        "channels": Mask.channels(shape, out=torch.tensor([0, 3]), inp=torch.tensor([1, 4, 7])),
        "bool": torch.rand(shape) > 0.5,
        "real": torch.rand(shape, dtype=torch.float64),
    }


def check_like_reference(ours, theirs, input, weight, mask, bias, channels, flags):
    """Values and all gradients; `flags` is the mask as it broadcasts over the input."""
    results = []
    for function in (ours, theirs):
        x, w, b = (t.clone().requires_grad_() for t in (input, weight, bias))
        y = function(x, w, mask, b, channels=channels)
        y.pow(2).sum().backward()
        results.append((y.detach(), x.grad, w.grad, b.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    y, gx, gw, _ = results[0]
    assert y.stride() == results[1][0].stride()
    assert not gx[~flags.expand_as(gx)].any()
    if not (isinstance(mask, torch.Tensor) and mask.is_floating_point()):
        dense = mask.dense() if isinstance(mask, Mask) else mask
        assert not gw[~dense].any()
    # What is inactive may be anything.
    poisoned = torch.where(flags, input, torch.tensor([float("nan"), float("inf")])[torch.randint(2, input.shape)])
    poisoned, weight = poisoned.requires_grad_(), weight.clone().requires_grad_()
    again = ours(poisoned, weight, mask, bias, channels=channels)
    torch.testing.assert_close(again, y)
    again.pow(2).sum().backward()
    torch.testing.assert_close(poisoned.grad, gx)
    torch.testing.assert_close(weight.grad, gw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_mask", ["full", "random", "channels", "bool", "real"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_conv2d(way, kind, weight_mask, memory_format):
    x = torch.randn(N, IN, 7, 6, dtype=torch.float64).contiguous(memory_format=memory_format)
    w, b = torch.randn(OUT, IN, 3, 2, dtype=torch.float64), torch.randn(OUT, dtype=torch.float64)
    mask, channels = weight_masks(w.shape)[weight_mask], masks(N, IN)[kind]

    def ours(*args, channels):
        return masked_conv2d(*args, (2, 1), (1, 0), (1, 2), channels=channels)

    def theirs(*args, channels):
        y = reference.masked_conv2d(*args, (2, 1), (1, 0), (1, 2), channels=channels)
        return y.contiguous(memory_format=memory_format)

    check_like_reference(ours, theirs, x, w, mask, b, channels, channels[..., None, None])


@pytest.mark.parametrize("kind", ["three in turn", "top half", "some empty or full"])
@pytest.mark.parametrize("size", [(7, 6), (1, 1), (1, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", [(), (2,), (1, 1)])
def test_pointwise(way, kind, size, memory_format, geometry):
    """Kernels of one pixel, which one product of matrices does where each image has its own channels."""
    x = torch.randn(N, IN, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    w, b = torch.randn(OUT, IN, 1, 1, dtype=torch.float64), torch.randn(OUT, dtype=torch.float64)
    channels = masks(N, IN)[kind]

    def ours(*args, channels):
        return masked_conv2d(*args, *geometry, channels=channels)

    def theirs(*args, channels):
        y = reference.masked_conv2d(*args, *geometry, channels=channels)
        return y if size == (1, 1) else y.contiguous(memory_format=memory_format)  # one pixel is either

    for mask in (Mask.full(w.shape), Mask.random(w.shape, 0.5)):
        check_like_reference(ours, theirs, x, w, mask, b, channels, channels[..., None, None])
    if not geometry:
        got = masked_conv2d(x, w, Mask.full(w.shape), channels=channels)
        torch.testing.assert_close(got, reference.masked_conv2d(x, w, Mask.full(w.shape), channels=channels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_mask", ["full", "random", "channels", "bool", "real"])
def test_linear(way, kind, weight_mask):
    x = torch.randn(N, IN, dtype=torch.float64)
    w, b = torch.randn(OUT, IN, dtype=torch.float64), torch.randn(OUT, dtype=torch.float64)
    mask, channels = weight_masks(w.shape)[weight_mask], masks(N, IN)[kind]
    check_like_reference(masked_linear, reference.masked_linear, x, w, mask, b, channels, channels)


def test_the_ways_are_taken(monkeypatch):
    """One call a group where grouping pays, none where it does not."""
    calls, in_place = [], []
    compute, gathered = _channel_masks.compute, maskfuse.ops.gathered_conv2d
    monkeypatch.setattr(maskfuse.ops, "gathered_conv2d", lambda *a: in_place.append(a) or gathered(*a))
    monkeypatch.setattr(_channel_masks, "compute", lambda groups, *a: calls.append(groups) or compute(groups, *a))
    x, w = torch.randn(8, 64, 28, 28), torch.randn(128, 64, 3, 3)
    channels = torch.rand(2, 64).topk(32).indices
    channels = torch.zeros(2, 64, dtype=torch.bool).scatter(1, channels, True)[torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])]
    want = reference.masked_conv2d(x, w, Mask.full(w.shape), None, 1, 1, channels=channels)
    got = masked_conv2d(x, w, Mask.full(w.shape), None, 1, 1, channels=channels)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert (len(in_place), calls) == (1, [])
    monkeypatch.setattr(_channel_masks, "_IN_PLACE_TYPES", ())
    got = masked_conv2d(x, w, Mask.full(w.shape), None, 1, 1, channels=channels)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert [(g.sizes, g.counts) for g in calls] == [([5, 3], [32, 32])]
    assert calls[0].order.tolist() == [0, 3, 5, 6, 7, 1, 2, 4]
    masked_conv2d(x, w, Mask.full(w.shape), None, 1, 1, channels=channels[0])
    assert (calls[1].order, calls[1].sizes) == (None, [8])
    # A few pixels do not pay for a weight's columns; a mask that leaves little does not either; nor do groups.
    masked_conv2d(x[:, :, :1, :1], w, Mask.full(w.shape), None, 1, 1, channels=channels)
    masked_conv2d(x, w, Mask.random(w.shape, 0.02), None, 1, 1, channels=channels)
    masked_conv2d(x, torch.randn(64, 32, 3, 3), Mask.full((64, 32, 3, 3)), None, 1, 1, 1, 2, channels=channels)
    masked_conv2d(x, w, Mask.full(w.shape), None, 1, 1, channels=torch.ones(8, 64, dtype=torch.bool))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight_mask", ["full", "random", "channels", "bool", "real"])
@pytest.mark.parametrize("kind", ["alike", "three in turn", "none"])
def test_the_way_on_cuda(monkeypatch, kind, weight_mask, dtype):
    """Its code with the CPU's kernels: what is read in place is known beforehand, and numbers are the reference's."""
    module, in_place = sys.modules["maskfuse.functional.masked_conv2d"], []
    gathered = maskfuse.ops.gathered_conv2d
    monkeypatch.setattr(maskfuse.ops, "gathered_conv2d", lambda *a: in_place.append(a) or gathered(*a))
    monkeypatch.setattr(module, "trusted", lambda *a: True)
    monkeypatch.setitem(module._OF_CHANNELS, "cpu", partial(module._of_channels_on_gpu, "cuda"))
    x, w, b = (torch.randn(*s, dtype=dtype) for s in ((N, 48, 7, 6), (OUT, 48, 5, 4), (OUT,)))
    mask, channels = weight_masks(w.shape)[weight_mask], masks(N, 48)[kind]
    if weight_mask == "real":
        mask = mask.to(dtype)

    def ours(*args, channels):
        return masked_conv2d(*args, (2, 1), (1, 0), (1, 1), channels=channels)

    def theirs(*args, channels):
        return reference.masked_conv2d(*args, (2, 1), (1, 0), (1, 1), channels=channels).contiguous()

    monkeypatch.setattr(torch.testing, "assert_close", partial(torch.testing.assert_close, atol=1e-3, rtol=1e-4))
    check_like_reference(ours, theirs, x, w, mask, b, channels, channels[..., None, None])
    taken = weight_mask == "channels" or (weight_mask == "full" and dtype == torch.float64)
    assert len(in_place) == 2 * taken
    if weight_mask == "channels":  # bits of channels that the mask hides are off
        assert not in_place[0][2][:, 1:].any() and not (in_place[0][2] & ~0b10010010).any()
    in_place.clear()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    want = reference.masked_conv2d(x, w, mask, b, (2, 1), (1, 0), channels=channels)
    torch.testing.assert_close(compiled(x, w, mask, b, channels=channels), want)
    assert len(in_place) == taken
    monkeypatch.setattr(module, "trusted", lambda *a: False)
    in_place.clear()
    ours(x, w, mask, b, channels=channels)
    assert not in_place


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("groups", [1, 3, 9])
def test_conv2d_padding_and_groups(way, padding, groups):
    x, w = torch.randn(N, IN, 7, 6), torch.randn(2 * IN, IN // groups, 3, 3)
    channels = masks(N, IN)["three in turn"]
    poisoned = x.masked_fill(~channels[:, :, None, None], float("nan"))
    args = (w, Mask.random(w.shape, 0.5), torch.randn(2 * IN), 1, padding, 1, groups)
    want = reference.masked_conv2d(x, *args, channels=channels)
    torch.testing.assert_close(masked_conv2d(poisoned, *args, channels=channels), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(way, dtype):
    x, w, b = (
        torch.randn(N, IN, 5, 5, dtype=dtype),
        torch.randn(OUT, IN, 3, 3, dtype=dtype),
        torch.randn(OUT, dtype=dtype),
    )
    channels = masks(N, IN)["some empty or full"]
    got = masked_conv2d(x, w, Mask.full(w.shape), b, channels=channels)
    want = reference.masked_conv2d(x.double(), w.double(), Mask.full(w.shape), b.double(), channels=channels)
    assert got.dtype == dtype
    close = {"atol": 0.05, "rtol": 0.02} if dtype.itemsize == 2 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(got.double(), want, **close)
    x, w = x[:, :, 0, 0], w[:, :, 0, 0]
    got = masked_linear(x, w, Mask.full(w.shape), b, channels)
    want = reference.masked_linear(x.double(), w.double(), Mask.full(w.shape), b.double(), channels)
    torch.testing.assert_close(got.double(), want, **close)


def test_every_backend(backend):
    x, w = torch.randn(N, IN, 5, 5), torch.randn(OUT, IN, 3, 3)
    for channels in masks(N, IN).values():
        poisoned = x.masked_fill(~channels[..., None, None], float("nan"))
        mask = Mask.random(w.shape, 0.4)
        want = reference.masked_conv2d(x, w, mask, channels=channels)
        torch.testing.assert_close(masked_conv2d(poisoned, w, mask, channels=channels), want, atol=1e-5, rtol=1e-4)
        flat, wl, ml = poisoned[:, :, 0, 0], w[:, :, 0, 0], mask.dense()[:, :, 0, 0]
        want = reference.masked_linear(x[:, :, 0, 0], wl, ml, channels=channels)
        torch.testing.assert_close(masked_linear(flat, wl, ml, channels=channels), want, atol=1e-5, rtol=1e-4)


def test_without_batch_and_leading_dimensions(way):
    x, w = torch.randn(IN, 5, 5), torch.randn(OUT, IN, 3, 3)
    channels = torch.rand(IN) > 0.5
    want = reference.masked_conv2d(x, w, Mask.full(w.shape), channels=channels)
    torch.testing.assert_close(masked_conv2d(x, w, Mask.full(w.shape), channels=channels), want, atol=1e-5, rtol=1e-4)
    w = w[:, :, 0, 0]
    for shape in ((IN,), (2, 3, IN), (0, IN), (2, 0, IN)):
        x = torch.randn(shape)
        for channels in (torch.rand(shape) > 0.5, torch.rand(IN) > 0.5):
            want = reference.masked_linear(x, w, Mask.full(w.shape), channels=channels)
            torch.testing.assert_close(masked_linear(x, w, Mask.full(w.shape), channels=channels), want)


def test_empty(way):
    w, b = torch.randn(OUT, IN, 3, 3, requires_grad=True), torch.randn(OUT)
    for channels in (torch.zeros(0, IN, dtype=torch.bool), torch.zeros(IN, dtype=torch.bool)):
        x = torch.zeros(0, IN, 5, 5, requires_grad=True)
        y = masked_conv2d(x, w, Mask.full(w.shape), b, channels=channels)
        assert y.shape == (0, OUT, 3, 3)
        y.sum().backward()
        assert x.grad.shape == x.shape and not w.grad.any()
    y = masked_linear(torch.zeros(2, 0), torch.zeros(3, 0), Mask.full((3, 0)), b[:3], torch.zeros(2, 0).bool())
    assert torch.equal(y, b[:3].expand(2, 3))
