"""compact_linear and compact_conv2d: bit for bit the masked ops of the expanded weight, differentiated in every way."""

from __future__ import annotations

import pytest
import torch
from compact import KINDS, made
from conftest import DTYPES, one_of, thorough
from maskfuse import Mask
from maskfuse.functional import compact_conv2d, compact_linear, expand_active, masked_conv2d, masked_linear
from test_memory import saved_bytes
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, vmap
from torch.library import opcheck


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_masked(request, backend, kind, dtype):
    one_of(request, backend, 8)
    layer, x = made(kind, dtype)
    compact = layer.to_compact()
    y, z = compact(x.requires_grad_()), layer(x)
    assert torch.equal(y, z) and y.dtype == dtype and y.stride() == z.stride()
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, compact.values, compact.bias), g)
    want = torch.autograd.grad(z, (x, layer.weight, layer.bias), g)
    assert torch.equal(got[0], want[0]) and got[0].stride() == want[0].stride()
    assert torch.equal(got[1], want[1][layer.mask.dense()]) and got[1].shape == (layer.mask.active,)
    assert torch.equal(got[2], want[2])


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_channels(backend, kind):
    layer, x = made(kind)
    channels = torch.rand(x.shape[:2]) > 0.5
    x = torch.where(channels.reshape(*channels.shape, *[1] * (x.dim() - 2)), x, torch.nan)
    compact = layer.to_compact()
    torch.testing.assert_close(compact(x, channels), layer(x, channels))
    torch.testing.assert_close(compact(x, channels=channels[0]), layer(x, channels[0]), equal_nan=True)
    with pytest.raises(ValueError, match="channels must have shape"):
        compact(x, channels[:, 1:])


def small(kind):
    mask = Mask.random((5, 9), 0.5) if kind == "linear" else Mask.random((4, 3, 2, 2), 0.5)
    values = torch.randn(mask.active, dtype=torch.float64, requires_grad=True)
    b = torch.randn(mask.shape[0], dtype=torch.float64, requires_grad=True)
    x = torch.randn((3, 9) if kind == "linear" else (2, 6, 4, 5), dtype=torch.float64, requires_grad=True)
    if kind == "linear":
        return lambda x, v, b: compact_linear(x, v, mask, b), (x, values, b), mask
    return lambda x, v, b: compact_conv2d(x, v, mask, b, (1, 2), 1, groups=2), (x, values, b), mask


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_derivatives(backend, kind):
    if backend == "triton" and kind == "conv":
        pytest.skip("a minute in the interpreter; test_as_masked has its gradients")
    function, args, _ = small(kind)
    assert gradcheck(function, args, check_forward_ad=True, **thorough(backend))
    assert gradgradcheck(function, args, fast_mode=True)
    x, values, _ = args
    assert gradcheck(lambda v: function(x.detach(), v, None), (values,), **thorough(backend))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_func(kind):
    function, (x, values, b), _ = small(kind)

    def loss(v):
        return function(x, v, b).pow(2).sum()

    (want,) = torch.autograd.grad(loss(values), values)
    torch.testing.assert_close(grad(loss)(values.detach()), want)
    second = jacrev(grad(loss))(values.detach())
    torch.testing.assert_close(second, second.T)
    per_sample = vmap(grad(lambda v, x: function(x[None], v, None).pow(2).sum()), (None, 0))(
        values.detach(), x.detach()
    )
    torch.testing.assert_close(per_sample.sum(0), grad(lambda v: function(x, v, None).pow(2).sum())(values.detach()))
    layer, x = made(kind)
    compact = layer.to_compact()
    other = {name: p * 2 for name, p in compact.named_parameters()}
    torch.testing.assert_close(functional_call(compact, other, (x,)), compact(x) * 2)


def test_opcheck():
    """With fake tensors, traced at dynamic shapes, and that nothing but autograd keys differentiates."""
    mask = Mask.random((5, 37), 0.3)
    v, x, b = torch.randn(mask.active), torch.randn(3, 37), torch.randn(5)
    g, bits, plan, shape = torch.randn(3, 5), mask.bits, mask.plan, list(mask.shape)
    v, x, b, g = (t.requires_grad_() for t in (v, x, b, g))
    raw = torch.ops.maskfuse
    opcheck(raw.compact_linear.default, (x, v, bits, plan, b, shape))
    opcheck(raw.compact_linear_input_grad.default, (g, v, bits, plan, shape))
    opcheck(raw.compact_linear_values_grad.default, (g, x, bits, plan, shape, mask.active))
    mask = Mask.random((4, 3, 3, 2), 0.5)
    geometry = ([2, 1], [1, 0], [1, 2], 2, list(mask.shape))
    v, x, b = torch.randn(mask.active), torch.randn(2, 6, 5, 7), torch.randn(4)
    g = torch.randn(2, 4, 3, 5)
    v, x, b, g = (t.requires_grad_() for t in (v, x, b, g))
    opcheck(raw.compact_conv2d.default, (x, v, mask.bits, [], b, *geometry))
    opcheck(raw.compact_conv2d_input_grad.default, (g, v, mask.bits, [], [5, 7], *geometry))
    opcheck(raw.compact_conv2d_values_grad.default, (g, x, mask.bits, [], mask.active, *geometry))


@pytest.mark.parametrize("kind", ["linear", "linear full", "conv", "conv groups"])
def test_compile_and_export(kind):
    layer, x = made(kind)
    compact = layer.to_compact()
    compiled = torch.compile(compact, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, compact(x))
    y.pow(2).sum().backward()
    got, compact.values.grad = compact.values.grad, None
    compact(x).pow(2).sum().backward()
    torch.testing.assert_close(got, compact.values.grad)
    exported = torch.export.export(compact, (x,)).module()
    torch.testing.assert_close(exported(x), compact(x))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast(kind):
    layer, x = made(kind)
    compact = layer.to_compact()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = compact(x), layer(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, z)
    y.float().pow(2).sum().backward()
    assert compact.values.grad.dtype == torch.float32
    assert torch.equal(compact(x.double().float()), layer(x))


def test_nothing_of_the_weights_size_is_kept():
    mask = Mask.random((768, 512), 0.1)
    values = torch.randn(mask.active, requires_grad=True)
    x = torch.randn(8, 512, requires_grad=True)
    kept = saved_bytes(lambda: compact_linear(x, values, mask), values)
    assert kept <= x.numel() * 4 + mask.nbytes
    full = saved_bytes(lambda: masked_linear(x, expand_active(values, mask), mask), values)
    assert full >= 768 * 512 * 4  # the measurement sees what it is meant to see
    of_input = saved_bytes(lambda: compact_linear(x, values.detach(), mask), values)
    assert of_input <= values.numel() * 4 + mask.nbytes


def test_without_elements():
    mask = Mask.full((4, 0))
    b = torch.randn(4)
    assert torch.equal(compact_linear(torch.randn(3, 0), torch.randn(0), mask, b), b.expand(3, 4))
    mask = Mask.random((4, 5), 0.5)
    assert compact_linear(torch.randn(0, 5), torch.randn(mask.active), mask, b).shape == (0, 4)
    for shape, images in (((0, 3, 2, 2), (2, 3, 4, 4)), ((4, 0, 2, 2), (2, 0, 4, 4)), ((4, 3, 2, 2), (0, 3, 4, 4))):
        mask, values = Mask.full(shape), torch.randn(Mask.full(shape).active)
        bias = torch.randn(shape[0])
        want = masked_conv2d(torch.zeros(images), expand_active(values, mask), mask, bias)
        assert torch.equal(compact_conv2d(torch.zeros(images), values, mask, bias), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.randn(3, 8)}, ValueError, r"input must have shape \[..., 9\]"),
        ({"input": torch.randn(3, 9).double()}, TypeError, "input and weight must have one dtype"),
        ({"values": torch.randn(3)}, ValueError, r"values must have shape \[22\]"),
        ({"values": torch.randn(22).long()}, TypeError, "values must be float32"),
        ({"mask": torch.ones(5, 9, dtype=torch.bool)}, TypeError, "mask must be a maskfuse.Mask"),
        ({"mask": Mask.full((22, 1, 1, 1))}, ValueError, "mask must have 2 dimensions"),
        ({"bias": torch.randn(4)}, ValueError, r"bias must have shape \[5\]"),
        ({"bias": torch.randn(5, device="meta")}, ValueError, "one device"),
    ],
)
def test_bad_input(change, error, message):
    args = {"input": torch.randn(3, 9), "values": torch.randn(22), "mask": Mask.random((5, 9), 0.5), "bias": None}
    compact_linear(**args)
    with pytest.raises(error, match=message):
        compact_linear(**{**args, **change})


def test_bad_input_of_convolutions():
    mask = Mask.random((4, 3, 2, 2), 0.5)
    x, values = torch.randn(2, 3, 5, 5), torch.randn(24)
    for call, message in (
        (lambda: compact_conv2d(x[:, 1:], values, mask), "input must have shape"),
        (lambda: compact_conv2d(x, values[1:], mask), "values must have shape"),
        (lambda: compact_conv2d(x, values, mask, groups=3), "groups must be a divisor"),
        (lambda: compact_conv2d(x, values, Mask.random((4, 12), 0.5)), "mask must have 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
