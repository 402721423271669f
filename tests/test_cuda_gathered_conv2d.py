"""gathered_conv2d by the CUDA kernels against exact sums."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from conftest import DTYPES, assert_sums_close, one_of
from device_ops import comparison, each_cuda_machine, each_machine, poisoned, with_library
from maskfuse import Mask
from maskfuse.ops.masked_conv2d import image_like
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight


class Conv(NamedTuple):
    batch: int
    inp: int
    out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def geometry(self):
        return list(self.stride), list(self.padding), list(self.dilation)

    def __str__(self):
        return "-".join(str(part).replace(" ", "") for part in self)


CONVS = [
    Conv(1, 1, 1, (1, 1), (1, 1)),
    Conv(3, 5, 7, (6, 5), (3, 3), padding=(1, 1)),
    Conv(5, 16, 24, (9, 7), (1, 1)),
    Conv(3, 72, 40, (7, 8), (3, 3), padding=(1, 1)),
    Conv(2, 200, 33, (5, 6), (3, 3), padding=(1, 1)),
    Conv(2, 24, 40, (11, 9), (5, 3), stride=(2, 3), padding=(2, 1)),
    Conv(1, 8, 16, (13, 12), (2, 3), dilation=(3, 2), padding=(0, 4)),
    Conv(70, 130, 8, (1, 1), (1, 1)),
    Conv(3, 136, 130, (14, 13), (1, 1), stride=(1, 2)),
    Conv(2, 3, 8, (5, 4), (5, 4), padding=(4, 3)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
KINDS = ["own", "few", "in groups", "shared", "shared few", "shared in groups", "some", "all", "none"]


def channels_of(kind, batch, width):
    """Bool `[batch, width]` or `[1, width]`."""
    rows = 1 if kind.startswith("shared") else batch
    if kind.endswith("in groups"):  # of 64, which are blocks of the depth
        flags = torch.rand(rows, -(-width // 64)) < 0.5
        return flags.repeat_interleave(64, 1)[:, :width]
    if kind == "some":  # of some images
        return (torch.rand(rows, width) < 0.5) & (torch.rand(rows, 1) < 0.5)
    if kind.endswith("few"):
        return torch.rand(rows, width) < 0.02
    return torch.rand(rows, width) < {"all": 2.0, "none": 0.0}.get(kind, 0.5)


def packed(machine, channels):
    return Mask.from_dense(channels).bits.to(machine.device)


def exact(conv, x, w, dy):
    """Output, input gradient and weight gradient in float64."""
    geometry = (conv.stride, conv.padding, conv.dilation)
    return (
        F.conv2d(x, w, None, *geometry),
        conv2d_input(x.shape, w, dy, *geometry),
        conv2d_weight(x, w.shape, dy, *geometry),
    )


def positive_zeros(t):
    return torch.equal(t, torch.zeros_like(t)) and not t.signbit().any()


@with_library
@each_machine
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_against_exact_sums(request, machine, library, conv, dtype, memory_format):
    close = comparison(machine, library)
    """What is not chosen is NaN or infinite; results are written into memory full of NaNs."""
    if machine.name == "triton" and (conv.inp > 100 or conv.kernel[0] * conv.kernel[1] > 9):
        pytest.skip("large for the interpreter")
    one_of(request, machine.name, 6)

    def make(*shape):
        return torch.randn(shape).to(dtype)

    x, w, b = make(conv.batch, conv.inp, *conv.size), make(conv.out, conv.inp, *conv.kernel), make(conv.out)
    dy = torch.randn_like(F.conv2d(x.double(), w.double(), None, *conv.geometry)).to(dtype)
    wd, bd, dyd = (t.to(machine.device) for t in (w, b, dy))
    dyd = dyd.contiguous(memory_format=memory_format)
    bias, taps, ops = b.double()[:, None, None], conv.kernel[0] * conv.kernel[1], machine.ops
    for kind in KINDS:
        channels = channels_of(kind, conv.batch, conv.inp)
        bits, flags = packed(machine, channels), channels[:, :, None, None].expand(x.shape)
        zeroed = torch.where(flags, x, 0)
        want = exact(conv, zeroed.double(), w.double(), dy.double())
        magnitude = exact(conv, zeroed.double().abs(), w.double().abs(), dy.double().abs())
        wild = torch.where(torch.rand(x.shape) < 0.5, torch.nan, torch.inf).to(dtype)
        xd = torch.where(flags, x, wild).to(machine.device).contiguous(memory_format=memory_format)

        poisoned(machine)
        y = ops.gathered_conv2d(xd, wd, bits, bd, *conv.geometry)
        close(y.cpu(), want[0] + bias, magnitude[0] + bias.abs(), dtype, taps * conv.inp + 1)
        assert y.stride() == image_like(xd, y.shape).stride()
        dx = ops.gathered_conv2d_input_grad(dyd, wd, bits, list(conv.size), *conv.geometry)
        close(dx.cpu(), want[1] * flags, magnitude[1] * flags, dtype, taps * conv.out)
        assert positive_zeros(dx.cpu()[~flags])
        assert dx.stride() == image_like(dyd, dx.shape).stride()
        dw = ops.gathered_conv2d_weight_grad(dyd, xd, bits, list(conv.kernel), *conv.geometry)
        close(dw.cpu(), want[2], magnitude[2], dtype, dy[0, 0].numel() * conv.batch)
        assert positive_zeros(dw.cpu()[:, ~channels.any(0)])
        assert dw.is_contiguous()
        if kind != "own":
            continue
        again = (
            ops.gathered_conv2d(xd, wd, bits, bd, *conv.geometry),
            ops.gathered_conv2d_input_grad(dyd, wd, bits, list(conv.size), *conv.geometry),
            ops.gathered_conv2d_weight_grad(dyd, xd, bits, list(conv.kernel), *conv.geometry),
        )
        assert all(torch.equal(a, b) for a, b in zip((y, dx, dw), again, strict=True))


@each_cuda_machine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 4])
def test_large_tiles(machine, rows, dtype):
    """Results of many tiles, whose 128 pixels reach over images in all ways."""
    conv = Conv(4, 192, 150, (17, 13), (3, 3), padding=(1, 1))
    x, w = torch.randn(4, 192, 17, 13).to(dtype), torch.randn(150, 192, 3, 3).to(dtype)
    dy = torch.randn(4, 150, 17, 13).to(dtype)
    channels = torch.tensor([[True, False, True], [False, True, False], [True, True, False], [False] * 3])[:rows]
    channels = channels.repeat_interleave(64, 1) & (torch.rand(rows, 192) < 0.9)
    flags = channels[:, :, None, None].expand(x.shape)
    zeroed = torch.where(flags, x, 0)
    want = exact(conv, zeroed.double(), w.double(), dy.double())
    magnitude = exact(conv, zeroed.double().abs(), w.double().abs(), dy.double().abs())
    xd = torch.where(flags, x, torch.nan).to(machine.device).contiguous(memory_format=torch.channels_last)
    wd, dyd, bits = w.to(machine.device), dy.to(machine.device), packed(machine, channels)
    poisoned(machine)
    y = machine.ops.gathered_conv2d(xd, wd, bits, None, *conv.geometry)
    assert_sums_close(y.cpu(), want[0], magnitude[0], dtype, 9 * 192)
    dx = machine.ops.gathered_conv2d_input_grad(dyd, wd, bits, [17, 13], *conv.geometry)
    assert_sums_close(dx.cpu(), want[1] * flags, magnitude[1] * flags, dtype, 9 * 150)
    assert positive_zeros(dx.cpu()[~flags])
    dw = machine.ops.gathered_conv2d_weight_grad(dyd, xd, bits, [3, 3], *conv.geometry)
    assert_sums_close(dw.cpu(), want[2], magnitude[2], dtype, 4 * 17 * 13)


@each_machine
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_that_are_not_finite(machine, dtype):
    """A NaN of the output's gradient reaches no channel that is not chosen."""
    channels = torch.rand(2, 70) < 0.5
    w, dy = torch.randn(9, 70, 3, 3).to(dtype), torch.full((2, 9, 5, 4), torch.nan, dtype=dtype)
    bits, (wd, dyd) = packed(machine, channels), (t.to(machine.device) for t in (w, dy))
    dx = machine.ops.gathered_conv2d_input_grad(dyd, wd, bits, [5, 4], [1, 1], [1, 1], [1, 1]).cpu()
    assert positive_zeros(dx[~channels]) and dx[channels].isnan().all()


@each_machine
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_that_nothing_chooses_are_not_read(machine, rows):
    """By a NaN in the weight: its block of 64 channels is not visited, nor its column of tiles in weight_grad."""
    channels = torch.ones(rows, 192, dtype=torch.bool)
    channels[:, 64:128] = False
    x, w = torch.randn(3, 192, 6, 5).bfloat16(), torch.randn(40, 192, 3, 3).bfloat16()
    w[:, 64:128] = torch.nan
    bits, (xd, wd) = packed(machine, channels), (t.to(machine.device) for t in (x, w))
    y = machine.ops.gathered_conv2d(xd, wd, bits, None, [1, 1], [1, 1], [1, 1]).cpu()
    kept = torch.cat([w[:, :64], w[:, 128:]], 1).double(), torch.cat([x[:, :64], x[:, 128:]], 1).double()
    want, magnitude = F.conv2d(kept[1], kept[0], padding=1), F.conv2d(kept[1].abs(), kept[0].abs(), padding=1)
    assert_sums_close(y, want, magnitude, torch.bfloat16, 9 * 128)
    nothing = packed(machine, torch.zeros(rows, 192, dtype=torch.bool))
    y = machine.ops.gathered_conv2d(xd, wd * torch.nan, nothing, None, [1, 1], [1, 1], [1, 1]).cpu()
    assert positive_zeros(y)
    if machine.name == "triton":
        return  # whose weight_grad visits all columns
    dy = torch.full((3, 40, 6, 5), torch.nan, dtype=torch.bfloat16, device=machine.device)
    dw = machine.ops.gathered_conv2d_weight_grad(dy, xd, nothing, [3, 3], [1, 1], [1, 1], [1, 1])
    assert positive_zeros(dw.cpu())


@with_library
@each_machine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_operands(machine, library, dtype):
    close = comparison(machine, library)
    conv = Conv(3, 10, 12, (6, 7), (3, 3), padding=(1, 1))
    channels = torch.rand(3, 10) < 0.5
    x, w = torch.randn(3, 10, 6, 7).to(dtype), torch.randn(12, 10, 3, 3).to(dtype)
    spread = torch.full((3, 20, 6, 14), torch.nan, dtype=dtype, device=machine.device)
    spread[:, ::2, :, 1::2] = x.to(machine.device)
    bits = torch.full((3, 2), -1, dtype=torch.int32, device=machine.device)
    bits[:, :1] = packed(machine, channels)
    zeroed = torch.where(channels[:, :, None, None], x, 0).double()
    want, magnitude = (F.conv2d(a, b, padding=1) for a, b in ((zeroed, w.double()), (zeroed.abs(), w.double().abs())))
    for weight in (w, w.contiguous(memory_format=torch.channels_last)):
        y = machine.ops.gathered_conv2d(
            spread[:, ::2, :, 1::2], weight.to(machine.device), bits[:, :1], None, *conv.geometry
        )
        close(y.cpu(), want, magnitude, dtype, 91)
    # One row for all images, and one that is repeated without being there.
    one = F.conv2d(torch.where(channels[:1, :, None, None], x, 0).double(), w.double(), padding=1)
    for row in (bits[:1, :1], bits[:1, :1].expand(3, 1)):
        y = machine.ops.gathered_conv2d(x.to(machine.device), w.to(machine.device), row, None, *conv.geometry)
        close(y.cpu(), one, one.abs() + 10, dtype, 91)


@each_machine
@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (3, 6, 1, 1), (1, 1, 1, 1), (1, 6, 5, 1), (2, 1, 1, 4)], ids=str)
@pytest.mark.parametrize("out", [1, 5])
def test_strides_are_those_that_fakes_promise(machine, shape, out):
    """Also of one channel, or one pixel, of which both formats are the same memory."""
    taps = [3, 3]
    w = torch.randn(out, shape[1], *taps, device=machine.device)
    bits = packed(machine, torch.ones(1, shape[1], dtype=torch.bool))
    geometry = ([1, 1], [1, 1], [1, 1])
    for memory_format in FORMATS:
        x = torch.randn(shape, device=machine.device).contiguous(memory_format=memory_format)
        for like in (x, x.clone(memory_format=memory_format), torch.empty_strided(shape, x.stride(), device=x.device)):
            like.copy_(x)
            y = machine.ops.gathered_conv2d(like, w, bits, None, *geometry)
            assert y.stride() == image_like(like, y.shape).stride()
            exact = F.conv2d(x.double(), w.double(), padding=1)  # torch's own in float32 is in TF32 on a GPU
            torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-4)
            dx = machine.ops.gathered_conv2d_input_grad(y, w, bits, list(shape[2:]), *geometry)
            assert dx.stride() == image_like(y, dx.shape).stride()
            exact = conv2d_input(shape, w.double(), y.double(), padding=1)
            torch.testing.assert_close(dx.double(), exact, atol=1e-3, rtol=1e-4)


@each_machine
def test_empty_operands(machine):
    def zeros(*shape):
        return torch.zeros(shape, device=machine.device)

    def bits(*shape):
        return packed(machine, torch.ones(shape, dtype=torch.bool))

    ops, geometry = machine.ops, ([1, 1], [1, 1], [1, 1])
    for rows in (0, 1):
        y = ops.gathered_conv2d(zeros(0, 300, 5, 5), zeros(4, 300, 3, 3), bits(rows, 300), None, *geometry)
        assert y.shape == (0, 4, 5, 5) and y.stride() == (100, 25, 5, 1)
        dx = ops.gathered_conv2d_input_grad(y, zeros(4, 300, 3, 3), bits(rows, 300), [5, 5], *geometry)
        assert dx.shape == (0, 300, 5, 5)
        poisoned(machine)
        dw = ops.gathered_conv2d_weight_grad(y, zeros(0, 300, 5, 5), bits(rows, 300), [3, 3], *geometry)
        assert dw.shape == (4, 300, 3, 3) and positive_zeros(dw.cpu())
    bias = torch.arange(4.0, device=machine.device)
    for rows in (1, 2):
        y = ops.gathered_conv2d(zeros(2, 0, 5, 5), zeros(4, 0, 3, 3), bits(rows, 0), bias, *geometry)
        assert torch.equal(y, bias[:, None, None].expand(2, 4, 5, 5))
        dx = ops.gathered_conv2d_input_grad(zeros(2, 0, 5, 5), zeros(0, 3, 3, 3), bits(rows, 3), [5, 5], *geometry)
        assert dx.shape == (2, 3, 5, 5) and positive_zeros(dx.cpu())
    like = zeros(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    y = ops.gathered_conv2d(like, zeros(0, 3, 3, 3), bits(1, 3), None, *geometry)
    assert y.shape == (2, 0, 5, 5) and y.stride() == image_like(like, y.shape).stride()


@each_cuda_machine
def test_bad_input(machine):
    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype, device=machine.device)

    ops, geometry = machine.ops, ([1, 1], [1, 1], [1, 1])
    x, w, words = zeros(3, 7, 5, 5), zeros(4, 7, 3, 3), zeros(3, 1, dtype=torch.int32)
    for call, message in [
        (lambda: ops.gathered_conv2d(x[0], w, words, None, *geometry), r"\[batch, channels, height, width\], got"),
        (lambda: ops.gathered_conv2d(x[:, :6], w, words, None, *geometry), "does not fit weight"),
        (lambda: ops.gathered_conv2d(x, w, words[:2], None, *geometry), r"bits must have shape \[3, 1\], got \[2, 1\]"),
        (lambda: ops.gathered_conv2d(x, w, words[0], None, *geometry), r"bits must have shape \[3, 1\], got \[1\]"),
        (lambda: ops.gathered_conv2d(x, w, words.long(), None, *geometry), "bits must be Int, got Long"),
        (lambda: ops.gathered_conv2d(x.int(), w.int(), words, None, *geometry), "input must be float32.*got Int"),
        (lambda: ops.gathered_conv2d(x, w.double(), words, None, *geometry), "the same dtype"),
        (lambda: ops.gathered_conv2d(x, w, words, zeros(2), *geometry), r"bias must have shape \[4\], got \[2\]"),
        (lambda: ops.gathered_conv2d(x, w, words, None, [0, 1], [0, 0], [1, 1]), "stride must be two integers"),
        (lambda: ops.gathered_conv2d(x, w, words, None, [1, 1], [0, 0], [9, 9]), "larger than the padded input"),
        (lambda: ops.gathered_conv2d_input_grad(x, w, words, [5, 5], *geometry), r"grad must have shape \[3, 4, 5, 5"),
        (lambda: ops.gathered_conv2d_input_grad(zeros(3, 4, 5, 5), w, words[:2], [5, 5], *geometry), "bits must have"),
        (lambda: ops.gathered_conv2d_weight_grad(x, x, words, [3], *geometry), "kernel_size must be two integers"),
        (lambda: ops.gathered_conv2d_weight_grad(x, x, words[:2], [3, 3], *geometry), r"bits must have shape \[3, 1\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
    pixel, kernel, far = zeros(1, 7, 1, 1), zeros(4, 7, 1, 1), ([2**30, 1], [2**29, 0], [1, 1])
    with pytest.raises(RuntimeError, match=r"gathered_conv2d: there is no CUDA kernel for this convolution: an axis"):
        ops.gathered_conv2d(pixel, kernel, words[:1], None, *far)
