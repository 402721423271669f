"""The pybind11 module of the raw kernels, which CMake builds: NumPy in, one instruction set at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maskfuse import Mask

raw = pytest.importorskip("maskfuse_raw", reason="built by CMake: make test")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("level", raw.levels())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_passes(dtype, level, threads):
    mask = Mask.random((70, 130), 0.4)
    m, bits = mask.dense().numpy(), mask.bits.numpy().view(np.uint32)
    rng = np.random.default_rng(0)
    x, dy, w = (rng.standard_normal(s).astype(dtype) for s in ((20, 130), (20, 70), (70, 130)))
    for which, a, b, want in (
        ("forward", x, w, x @ (w * m).T),
        ("input_grad", dy, w, dy @ (w * m)),
        ("weight_grad", dy, x, (dy.T @ x) * m),
    ):
        got = raw.masked_gemm(which, a, b, bits=bits, isa=level, threads=threads)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        got = raw.masked_gemm(which, a, b, factor=m.astype(dtype), isa=level, threads=threads)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bad_input():
    x, w = np.ones((2, 8), np.float32), np.ones((3, 8), np.float32)
    bits = np.ones((3, 1), np.uint32)
    with pytest.raises(ValueError, match="fit together"):
        raw.masked_gemm("forward", x[:, :4].copy(), w, bits=bits, isa="scalar")
    with pytest.raises(ValueError, match="bits must have shape"):
        raw.masked_gemm("forward", x, w, bits=bits[:2].copy(), isa="scalar")
    with pytest.raises(ValueError, match="either bits or factor"):
        raw.masked_gemm("forward", x, w, isa="scalar")
    with pytest.raises(ValueError, match="isa must be"):
        raw.masked_gemm("forward", x, w, bits=bits, isa="neon")


def test_numpy_and_torch_views_are_the_same_kernels():
    mask = Mask.random((70, 130), 0.4)
    x, w = torch.randn(20, 130), torch.randn(70, 130)
    ours = torch.ops.maskfuse.masked_linear(x, w, mask.bits, [], None)
    level = torch.ops.maskfuse.cpu_level()
    theirs = raw.masked_gemm("forward", x.numpy(), w.numpy(), bits=mask.bits.numpy().view(np.uint32), isa=level)
    assert np.array_equal(ours.numpy(), theirs)


def words(mask):
    return mask.bits.numpy().view(np.uint32)


def exact(which, x, dy, w, **geometry):
    """A pass of a convolution in float64, on what the masks have left."""
    x, w = (t.detach().double().requires_grad_() for t in (x, w))
    y = torch.nn.functional.conv2d(x, w, **geometry)
    return y if which == "forward" else torch.autograd.grad(y, x if which == "input_grad" else w, dy.double())[0]


PASSES = ("forward", "input_grad", "weight_grad")


def operands(which, x, dy, w):
    pairs = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}
    sizes = {"forward": None, "input_grad": tuple(x.shape[2:]), "weight_grad": tuple(w.shape[2:])}
    return [t.numpy() for t in pairs[which]], sizes[which]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("level", raw.levels())
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_conv2d(dtype, which, level, channels_last):
    mask = Mask.random((24, 20, 3, 3), 0.3)
    x, dy = torch.randn(2, 20, 9, 8, dtype=dtype), torch.randn(2, 24, 5, 6, dtype=dtype)
    if channels_last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    w = torch.randn(24, 20, 3, 3, dtype=dtype)
    geometry = {"stride": (2, 1), "padding": (1, 0)}
    want = exact(which, x, dy, w * mask.dense(), **geometry)
    if which == "weight_grad":
        want = want * mask.dense()
    turned = torch.ops.maskfuse.mask_transpose(mask.bits, 180, 9).numpy().view(np.uint32)
    plan = raw.mask_plan(turned, 24 * 9, 9) if which == "input_grad" else raw.mask_plan(words(mask), 180, 9)
    (a, b), size = operands(which, x, dy, w)
    for planned in (None, plan):
        for threads in (1, 3):
            got = raw.masked_conv2d(
                which, a, b, words(mask), plan=planned, size=size, isa=level, threads=threads, **geometry
            )
            np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-4)
    if which != "weight_grad":
        assert (got.strides[1] == got.itemsize) == channels_last


@pytest.mark.parametrize("level", [level for level in raw.levels() if level != "scalar"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("rows", [1, 3])
def test_gathered_conv2d(rows, which, level):
    chosen = Mask.random((rows, 40), 0.5)
    x, dy, w = torch.randn(3, 40, 6, 7), torch.randn(3, 16, 6, 7), torch.randn(16, 40, 3, 3)
    keep = chosen.dense()[:, :, None, None]
    want = exact(which, torch.where(keep, x, 0), dy, w, padding=1)
    if which == "input_grad":
        want = torch.where(keep, want, 0)
    (a, b), size = operands(which, torch.where(keep, x, np.nan), dy, w)  # what is not chosen is not read
    got = raw.gathered_conv2d(which, a, b, words(chosen), size=size, padding=(1, 1), isa=level, threads=2)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="isa scalar has no kernel"):
        raw.gathered_conv2d(which, a, b, words(chosen), size=size, padding=(1, 1), isa="scalar")


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("pixels", [1, 49])
def test_channels(pixels, naive):
    x, index = np.random.default_rng(0).standard_normal((3, 8, pixels)).astype(np.float32), np.int32([5, -8, 2])
    picked = raw.channel_gather(x, index, naive=naive, threads=2)
    assert np.array_equal(picked, x[:, index])
    back = raw.channel_scatter(picked, index, 8, naive=naive)
    want = np.zeros_like(x)
    want[:, index] = picked
    assert np.array_equal(back, want)


def test_bad_images_and_channels():
    x, w = np.ones((2, 4, 5, 5), np.float32), np.ones((3, 4, 3, 3), np.float32)
    bits = np.ones((3, 2), np.uint32)
    for arguments, message in (
        (("forward", x[:, :2].copy(), w, bits), "fit together"),
        (("forward", x, w, bits[:2].copy()), "bits must have shape"),
        (("forward", x[0], w, bits), "four dimensions"),
        (("forward", x, w[..., ::2], bits), "the weight must be contiguous"),
        (("input_grad", x, w, bits), "size is the input's"),
        (("sideways", x, w, bits), "pass must be"),
    ):
        with pytest.raises(ValueError, match=message):
            raw.masked_conv2d(*arguments, isa="scalar")
    other = raw.mask_plan(np.ones((5, 2), np.uint32), 36, 9)
    with pytest.raises(ValueError, match="plan is not the plan of bits"):
        raw.masked_conv2d("forward", x, w, bits, plan=other, isa="scalar")
    with pytest.raises(ValueError, match="kernel is larger"):
        raw.masked_conv2d("forward", x[..., :1].copy(), w, bits, isa="scalar")
    with pytest.raises(ValueError, match="channels must have shape"):
        raw.gathered_conv2d("forward", x, w, bits, isa="scalar")
    flat = np.ones((2, 4, 1), np.float32)
    with pytest.raises(ValueError, match="must lie in"):
        raw.channel_gather(flat, np.int32([4]))
    with pytest.raises(ValueError, match="twice"):
        raw.channel_scatter(flat, np.int32([0, 1, 2, -6]), 8)
    with pytest.raises(ValueError, match="a place for each channel"):
        raw.channel_scatter(flat, np.int32([0]), 8)
    with pytest.raises(ValueError, match="taps must divide"):
        raw.mask_plan(bits, 36, 5)


@pytest.mark.parametrize("taps", [0, 9])
def test_a_plan_is_the_op_s(taps):
    mask = Mask.random((70, 126), 0.3)
    want = torch.ops.maskfuse.mask_plan(mask.bits, 126, taps).numpy()
    assert np.array_equal(raw.mask_plan(words(mask), 126, taps), want)
