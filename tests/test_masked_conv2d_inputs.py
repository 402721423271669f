"""masked_conv2d of unusual inputs: strides, NaN, no batch, empty ones, more or less of everything."""

from __future__ import annotations

import pytest
import torch
from conftest import few, once
from convolutions import FORMATS, GEOMETRIES, OPS, STRUCTURES, check, operands, preferring
from maskfuse import Mask, masked_conv2d, reference
from maskfuse.ops.masked_conv2d import image_like


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_any_strides(backend, kernel):
    once(backend, kernel, "accumulate")
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry)
    mask = Mask.random(w.shape, 0.3)
    batch, inp, _, _, height, width, *_ = geometry
    views = {
        "transposed": torch.randn(batch, inp, width, height).transpose(2, 3),
        "every other": torch.randn(2 * batch, 2 * inp, height, 2 * width)[::2, ::2, :, ::2],
        "slice of channels_last": x.new_empty(batch, 2 * inp, height, width)
        .normal_()
        .to(memory_format=torch.channels_last)[:, :inp],
        "expanded": torch.randn(batch, inp, 1, 1).expand(batch, inp, height, width),
        "reversed dimensions": torch.randn(width, height, inp, batch).permute(3, 2, 1, 0),
    }
    with preferring(kernel):
        for view in few(backend, *views.values()):
            check(view, w, mask, b, *geometry[6:])
        check(x, w.to(memory_format=torch.channels_last), mask, b, *geometry[6:])
        check(x, w.transpose(2, 3), mask, b, *geometry[6:])


def test_an_expanded_gradient():
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry)
    mask = Mask.random(w.shape, 0.3)
    gradients = []
    for function in (masked_conv2d, reference.masked_conv2d):
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        function(leaf, weight, mask, b, *geometry[6:]).sum().backward()
        gradients.append((leaf.grad, weight.grad * mask.dense()))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_without_a_batch_dimension(backend):
    x, w, b = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    y = masked_conv2d(x[0], w, mask, b, padding=1)
    assert y.shape == (17, 9, 14)
    torch.testing.assert_close(y, masked_conv2d(x[:1], w, mask, b, padding=1)[0])


@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "direct", "library"])
def test_an_empty_batch(backend, kernel):
    once(backend, kernel, "accumulate")
    x, w, b = operands(GEOMETRIES["3x3"])
    x, w = x[:0].requires_grad_(), w.requires_grad_()
    with preferring(kernel):
        y = masked_conv2d(x, w, Mask.random(w.shape, 0.3), b, padding=1)
        assert y.shape == (0, 17, 9, 14)
        y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any()


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("batch, inp, out", [(0, 1, 1), (0, 6, 4), (2, 6, 0), (2, 1, 4), (2, 6, 1)])
@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_strides_are_those_that_traced_code_is_told(memory_format, batch, inp, out, size):
    def image(channels):
        return torch.randn(batch, channels, *size).contiguous(memory_format=memory_format)

    x, dy, w = image(inp), image(out), torch.randn(out, inp, 3, 3)
    bits, geometry = Mask.full(w.shape).bits, ([1, 1], [1, 1], [1, 1], 1)
    y = OPS.masked_conv2d(x, w, bits, [], None, *geometry)
    assert y.shape == dy.shape and y.stride() == image_like(x, dy.shape).stride()
    dx = OPS.masked_conv2d_input_grad(dy, w, bits, [], list(size), *geometry)
    assert dx.shape == x.shape and dx.stride() == image_like(dy, x.shape).stride()


def test_masked_nan_takes_no_part(backend):
    x, w, b = operands(GEOMETRIES["3x3"])
    for make in few(backend, *STRUCTURES.values(), of=2):
        mask = make(tuple(w.shape))
        poisoned = w.masked_fill(~mask.dense(), torch.nan)
        for kernel in ("accumulate", "shifted", "direct", "library", "") if backend.startswith("cpu") else ("",):
            with preferring(kernel):
                assert masked_conv2d(x, poisoned, mask, b, padding=1).isfinite().all()
                leaf = x.clone().requires_grad_()
                masked_conv2d(leaf, poisoned, mask, b, padding=1).sum().backward()
                assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_a_sample_with_nan_spoils_no_other(kernel):
    x, w, b = operands(GEOMETRIES["many small images"])
    mask = Mask.random(w.shape, 0.3)
    with preferring(kernel):
        want = masked_conv2d(x, w, mask, b, padding=1)
        x[4] = torch.nan
        got = masked_conv2d(x, w, mask, b, padding=1)
    others = torch.arange(len(x)) != 4
    assert torch.equal(got[others], want[others]) and got[4].isnan().any()


@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "sampled", "direct"])
def test_same_bits_for_any_number_of_threads(kernel):
    x, w, b = operands((4, 40, 70, (3, 3), 15, 14))
    mask = Mask.random(w.shape, 0.2)
    before, results = torch.get_num_threads(), []
    try:
        with preferring(kernel):
            for threads in (1, 2, 3, 8, 1):
                torch.set_num_threads(threads)
                leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
                y = masked_conv2d(leaf, weight, mask, b, padding=1)
                y.pow(2).sum().backward()
                # What this kernel computed: another's choice may depend on how many threads there are.
                ran = {"sampled": [weight.grad], "direct": [y.detach(), leaf.grad, weight.grad]}
                results.append(ran.get(kernel, [y.detach(), leaf.grad]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_large_images_are_cut_into_strips(kernel):
    # More rows than a strip has, and more channels than leave a strip in cache.
    x, w, b = operands((1, 300, 20, (3, 3), 45, 35))
    with preferring(kernel):
        check(x, w, Mask.random(w.shape, 0.05), b, 1, 1)


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_fewer_channels_than_threads(kernel, memory_format):
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with preferring(kernel):
            for inp, out in ((200, 3), (200, 5), (2, 300)):
                x, w, b = operands((1, inp, out, (3, 3), 2, 5), memory_format=memory_format)
                check(x, w, Mask.random(w.shape, 0.3), b, 1, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("height, width", [(0, 5), (5, 0), (0, 0)])
def test_an_image_of_padding_alone(height, width):
    # Torch's own convolution, and so the reference, refuses these.
    x, w, b = (t.requires_grad_() for t in operands((2, 24, 24, (3, 3), height, width)))
    for kernel in ("accumulate", "shifted", "direct"):
        with preferring(kernel):
            y = masked_conv2d(x, w, Mask.random(w.shape, 0.3), b, 1, 2)
            assert torch.equal(y, b.reshape(-1, 1, 1).expand(2, 24, height + 2, width + 2))
            dx, dw = torch.autograd.grad(y.sum(), (x, w))
            assert dx.shape == x.shape and not dw.any()


@pytest.mark.parametrize("channels", [None, torch.ones(2, 0, dtype=torch.bool)])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_input_channels(backend, channels, groups):
    """The bias is left; gradients are zero, or empty."""
    x, w, b = (t.requires_grad_() for t in (torch.randn(2, 0, 5, 6), torch.randn(4, 0, 3, 3), torch.randn(4)))
    y = masked_conv2d(x, w, Mask.full(w.shape), b, 1, 1, groups=groups, channels=channels)
    torch.testing.assert_close(y, b[:, None, None].expand(2, 4, 5, 6))
    y.sum().backward()
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
    assert b.grad.eq(2 * 5 * 6).all()


def test_no_output_channels(backend):
    x, w = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(0, 3, 3, 3, requires_grad=True)
    y = masked_conv2d(x, w, Mask.full(w.shape), torch.randn(0), 2, 1)
    assert y.shape == (2, 0, 3, 3)
    y.sum().backward()
    assert not x.grad.any() and w.grad.shape == w.shape


@pytest.mark.parametrize("stride", [7, 2**20, 2**31 - 1])
def test_strides_beyond_the_image(stride):
    """One output pixel, in no more time than any other."""
    x, w = torch.randn(2, 24, 6, 6), torch.randn(24, 24, 3, 3)
    mask = Mask.random(w.shape, 0.1)
    want = reference.masked_conv2d(x[:, :, :3, :3], w, mask)
    for kernel in ("accumulate", "shifted", "direct", "library"):
        torch.ops.maskfuse.prefer_masked_conv2d_kernel(kernel)
        try:
            torch.testing.assert_close(masked_conv2d(x, w, mask, None, stride), want, atol=1e-4, rtol=1e-4)
        finally:
            torch.ops.maskfuse.prefer_masked_conv2d_kernel("")
