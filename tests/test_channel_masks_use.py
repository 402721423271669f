"""Channel masks differentiated, transformed, compiled, in layers, and bad ones."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from chosen_channels import IN, OUT, N, masks
from chosen_channels import way as way
from maskfuse import Mask, masked_conv2d, masked_linear, reference
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap


@pytest.mark.parametrize("kind", ["alike", "three in turn", "top half", "some empty or full"])
def test_gradcheck(way, kind):
    channels = masks(N, IN)[kind]
    x = torch.randn(N, IN, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, IN, 2, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    mask = Mask.random(w.shape, 0.6)

    def conv(x, w, b):
        return masked_conv2d(x, w, mask, b, 2, 1, channels=channels)

    def linear(x, w, b):
        return masked_linear(x[:, :, 0, 0], w[:, :, 0, 0], mask.dense()[:, :, 0, 0], b, channels)

    for function in (conv, linear):
        assert gradcheck(function, (x, w, b), fast_mode=True)
        assert gradgradcheck(function, (x, w, b), fast_mode=True)


def test_func_transforms(way):
    x, w, channels = torch.randn(N, IN), torch.randn(OUT, IN), masks(N, IN)["three in turn"]
    mask = Mask.random(w.shape, 0.5)

    def loss(function):
        return lambda x, w, channels: function(x, w, mask, None, channels).pow(2).sum()

    got, want = (grad(loss(m.masked_linear), 1)(x, w, channels) for m in (maskfuse, reference))
    torch.testing.assert_close(got, want)
    got, want = (vmap(grad(loss(m.masked_linear), 1), (0, None, 0))(x, w, channels) for m in (maskfuse, reference))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layer", [MaskedConv2d(IN, OUT, 3, padding=1), MaskedLinear(IN, OUT)], ids=["conv", "linear"])
def test_compile(layer):
    torch._dynamo.reset()
    layer.set_mask(Mask.random(layer.weight.shape, 0.5))
    x = torch.randn(N, IN, 5, 5) if isinstance(layer, MaskedConv2d) else torch.randn(N, IN)
    channels = masks(N, IN)["three in turn"]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for module in (layer, compiled):
        layer.zero_grad()
        a = x.clone().requires_grad_()
        y = module(a, channels=channels)
        y.pow(2).sum().backward()
        results.append((y, a.grad, layer.weight.grad))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced, atol=1e-5, rtol=1e-4)


def test_layers(way):
    channels = masks(N, IN)["three in turn"]
    x = torch.randn(N, IN, 6, 5)
    poisoned = x.masked_fill(~channels[:, :, None, None], float("nan"))
    zeros = x.masked_fill(~channels[:, :, None, None], 0)
    for mode in ("zeros", "reflect", "circular"):
        conv = MaskedConv2d(IN, OUT, 3, padding=1, padding_mode=mode, mask=Mask.random((OUT, IN, 3, 3), 0.4))
        torch.testing.assert_close(conv(poisoned, channels=channels), conv(zeros), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(conv(poisoned, channels), conv(zeros), atol=1e-5, rtol=1e-4)
    linear = MaskedLinear(IN, OUT, mask=Mask.random((OUT, IN), 0.4))
    got = linear(poisoned[:, :, 0, 0], channels=channels)
    torch.testing.assert_close(got, linear(zeros[:, :, 0, 0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(way, dtype):
    channels = masks(N, IN)["three in turn"]
    layer = MaskedConv2d(IN, OUT, 3)
    x = torch.randn(N, IN, 6, 5, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x, channels=channels)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x, channels=channels), atol=0.05, rtol=0.02)


X, W, C = torch.randn(N, IN, 4, 4), torch.randn(OUT, IN, 3, 3), torch.ones(N, IN, dtype=torch.bool)
M = Mask.full(W.shape)
XL, WL, ML = X[:, :, 0, 0], W[:, :, 0, 0], Mask.full((OUT, IN))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masked_conv2d(X, W, M, channels=C.int()), TypeError, r"channels must be a bool tensor, got int32"),
        (lambda: masked_conv2d(X, W, M, channels=[True]), TypeError, r"channels must be a bool tensor, got list"),
        (
            lambda: masked_conv2d(X, W, M, channels=C[:, :4]),
            ValueError,
            r"channels must have shape \[9\] or \[6, 9\] for input float32 tensor \[6, 9, 4, 4\], got bool.*\[6, 4\]",
        ),
        (
            lambda: masked_conv2d(X[0], W, M, channels=C),
            ValueError,
            r"channels must have shape \[9\] for input float32 tensor \[9, 4, 4\], got bool tensor \[6, 9\]",
        ),
        (
            lambda: masked_conv2d(X, W, M, channels=C.to("meta")),
            ValueError,
            "channels and input must be on one device, got meta and cpu",
        ),
        (
            lambda: masked_linear(XL, WL, ML, channels=C.float()),
            TypeError,
            r"channels must be a bool tensor, got float",
        ),
        (
            lambda: masked_linear(XL, WL, ML, channels=C[:2]),
            ValueError,
            r"channels must have shape \[9\] or \[6, 9\] for input .*\[6, 9\], got bool tensor \[2, 9\]",
        ),
        (
            lambda: masked_linear(XL, WL, ML, channels=C.to("meta")),
            ValueError,
            "channels and input must be on one device, got meta and cpu",
        ),
        (lambda: MaskedLinear(IN, OUT)(XL, C[0, :4]), ValueError, r"channels must have shape \[9\] or"),
        (lambda: MaskedConv2d(IN, OUT, 3)(X, C.int()), TypeError, "channels must be a bool tensor"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_meta():
    y = masked_conv2d(X.to("meta"), W.to("meta"), M, channels=C.to("meta"))
    assert y.is_meta and y.shape == (N, OUT, 2, 2)
