"""masked_conv2d by the CUDA kernels against exact sums."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from conftest import DTYPES, assert_sums_close, one_of
from device_ops import capability, comparison, each_cuda_machine, each_machine, multiprocessors, poisoned, with_library
from maskfuse import Mask
from maskfuse.ops.masked_conv2d import image_like
from torch._subclasses.fake_tensor import FakeTensorMode
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
    groups: int = 1

    @property
    def geometry(self):
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def __str__(self):
        return "-".join(str(part).replace(" ", "") for part in self)


CONVS = [
    Conv(1, 1, 1, (1, 1), (1, 1)),
    Conv(2, 5, 7, (6, 5), (3, 3), padding=(1, 1)),
    Conv(3, 16, 24, (9, 7), (1, 1)),
    Conv(2, 72, 40, (7, 8), (3, 3), padding=(1, 1)),
    Conv(2, 24, 40, (11, 9), (3, 2), stride=(2, 3), padding=(2, 1)),
    Conv(1, 8, 16, (13, 12), (2, 3), dilation=(3, 2), padding=(0, 4)),
    Conv(2, 24, 36, (6, 6), (3, 3), padding=(1, 1), groups=3),
    Conv(2, 6, 6, (8, 8), (3, 3), stride=(2, 2), padding=(1, 1), groups=6),
    Conv(1, 136, 130, (20, 20), (1, 1)),
    Conv(1, 3, 8, (5, 4), (5, 4), padding=(4, 3)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


def exact(conv, x, w, dy):
    """Output, input gradient and weight gradient in float64."""
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return (
        F.conv2d(x, w, None, *geometry),
        conv2d_input(x.shape, w, dy, *geometry),
        conv2d_weight(x, w.shape, dy, *geometry),
    )


@with_library
@each_cuda_machine
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_against_exact_sums(machine, library, conv, dtype, memory_format):
    close = comparison(machine, library)

    def make(*shape):
        return torch.randn(shape).to(dtype)

    weight_shape = (conv.out, conv.inp // conv.groups, *conv.kernel)
    x, w, b = make(conv.batch, conv.inp, *conv.size), make(*weight_shape), make(conv.out)
    mask = Mask.random(weight_shape, 0.4)
    dense = mask.dense()
    effective = torch.where(dense, w, torch.zeros((), dtype=dtype)).double()
    dy = torch.randn_like(F.conv2d(x.double(), effective, None, *conv.geometry)).to(dtype)
    w[~dense] = float("nan")
    want = exact(conv, x.double(), effective, dy.double())
    magnitude = exact(conv, x.double().abs(), effective.abs(), dy.double().abs())

    bits = mask.bits.to(machine.device)
    xd, dyd = (t.to(machine.device).contiguous(memory_format=memory_format) for t in (x, dy))
    wd, bd = w.to(machine.device), b.to(machine.device)
    taps = conv.kernel[0] * conv.kernel[1]
    bias = b.double()[:, None, None]
    terms = taps * max(conv.inp, conv.out) // conv.groups
    size, kernel, ops = list(conv.size), list(conv.kernel), machine.ops
    for plan in ([], ops.mask_lists(bits, weight_shape[1] * taps, taps)):
        poisoned(machine)
        y = ops.masked_conv2d(xd, wd, bits, plan, bd, *conv.geometry)
        assert y.is_contiguous(memory_format=memory_format)
        close(y.cpu(), want[0] + bias, magnitude[0] + bias.abs(), dtype, terms + 1)
        dx = ops.masked_conv2d_input_grad(dyd, wd, bits, plan, size, *conv.geometry)
        assert dx.is_contiguous(memory_format=memory_format)
        close(dx.cpu(), want[1], magnitude[1], dtype, terms)
        dw = ops.masked_conv2d_weight_grad(dyd, xd, bits, plan, kernel, *conv.geometry)
        close(dw.cpu(), want[2] * dense, magnitude[2] * dense, dtype, dy[0, 0].numel() * conv.batch)
        masked = dw.cpu()[~dense]
        assert torch.equal(masked, torch.zeros_like(masked)) and not masked.signbit().any()


@with_library
@each_machine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_images_and_channels_last_weights(machine, library, dtype):
    close = comparison(machine, library)
    conv = Conv(3, 10, 12, (6, 7), (3, 3), padding=(1, 1))
    x = torch.randn(3, 20, 6, 14).to(dtype)[:, ::2, :, 1::2]
    w = torch.randn(12, 10, 3, 3).to(dtype)
    mask = Mask.random(w.shape, 0.5)
    effective = torch.where(mask.dense(), w, torch.zeros((), dtype=dtype)).double()
    want = F.conv2d(x.double(), effective, padding=1)
    magnitude = F.conv2d(x.double().abs(), effective.abs(), padding=1)
    spread = torch.zeros(3, 20, 6, 14, dtype=dtype, device=machine.device)
    spread[:, ::2, :, 1::2] = x.to(machine.device)
    strided = spread[:, ::2, :, 1::2]
    bits = mask.bits.to(machine.device)
    for weight in (w, w.contiguous(memory_format=torch.channels_last)):
        y = machine.ops.masked_conv2d(strided, weight.to(machine.device), bits, [], None, *conv.geometry)
        close(y.cpu(), want, magnitude, dtype, 91)


@each_machine
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(6, 5), (1, 5), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("out", [0, 1, 6])
@pytest.mark.parametrize("inp", [0, 1, 6])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_strides_are_those_that_traced_code_is_told(request, machine, batch, inp, out, size, memory_format):
    one_of(request, machine.name, 5)

    def image(channels):
        return torch.randn(batch, channels, *size, device=machine.device).contiguous(memory_format=memory_format)

    w = torch.randn(out, inp, 3, 3, device=machine.device)
    bits = Mask.full(w.shape).bits.to(machine.device)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    x, dy = image(inp), image(out)
    y = machine.ops.masked_conv2d(x, w, bits, [], None, *geometry)
    assert y.shape == dy.shape and y.stride() == image_like(x, dy.shape).stride()
    dx = machine.ops.masked_conv2d_input_grad(dy, w, bits, [], list(size), *geometry)
    assert dx.shape == x.shape and dx.stride() == image_like(dy, x.shape).stride()


@each_machine
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(6, 5), (1, 1)], ids=str)
def test_strides_of_a_chain(machine, size, memory_format):
    """A single channel, or a single pixel, between two convolutions: both memory formats fit it."""
    x = torch.randn(2, 16, *size, device=machine.device).contiguous(memory_format=memory_format)
    weights = [torch.randn(shape, device=machine.device) for shape in ((1, 16, 3, 3), (16, 1, 3, 3))]
    bits = [Mask.full(w.shape).bits.to(machine.device) for w in weights]

    def strides(ops, x, weights, bits):
        found = []
        for w, b in zip(weights, bits, strict=True):
            x = ops.masked_conv2d(x, w, b, [], None, [1, 1], [1, 1], [1, 1], 1)
            found.append(x.stride())
        return found

    with FakeTensorMode() as mode:
        told = strides(
            torch.ops.maskfuse, mode.from_tensor(x), *([mode.from_tensor(t) for t in ts] for ts in (weights, bits))
        )
    assert strides(machine.ops, x, weights, bits) == told


@each_machine
def test_channel_masks_skip_blocks(machine):
    """Whole blocks of 64 channels that are masked are not read: a NaN there would show."""
    x, w = torch.randn(1, 192, 5, 5).bfloat16(), torch.randn(40, 192, 3, 3).bfloat16()
    inp = torch.ones(192, dtype=torch.bool)
    inp[64:128] = False
    mask = Mask.channels(w.shape, inp=inp)
    bits = mask.bits.to(machine.device)
    plan = machine.ops.mask_lists(bits, 192 * 9, 9)
    assert plan[0][0, 0] == 18
    x[:, 64:128] = float("nan")
    y = machine.ops.masked_conv2d(
        x.to(machine.device), w.to(machine.device), bits, plan, None, [1, 1], [1, 1], [1, 1], 1
    )
    kept = torch.where(mask.dense(), w, torch.zeros((), dtype=w.dtype)).double()
    x = x.nan_to_num().double()
    want, magnitude = F.conv2d(x, kept, padding=1), F.conv2d(x.abs(), kept.abs(), padding=1)
    assert_sums_close(y.cpu(), want, magnitude, torch.bfloat16, 1728)


@each_cuda_machine
def test_choice_of_kernel(machine):
    def choice(direction, images, kernel, out, dtype, groups=1, stride=1, pad=1, capability=80):
        geometry = ([stride, stride], [pad, pad], [1, 1], groups)
        return machine.ops.masked_conv2d_choice(
            direction, images, kernel, out, *geometry, dtype, False, 132, capability
        )

    assert choice("forward", [32, 256, 56, 56], [3, 3], 256, torch.bfloat16) == "product 128x128"
    assert choice("weight_grad", [32, 64, 14, 14], [3, 3], 64, torch.float16) == "product 64x64 in 24 parts"
    assert choice("input_grad", [1, 64, 14, 14], [3, 3], 64, torch.float64) == "element in 2 parts"
    # A product of matrices, where every pixel meets a kernel of one pixel.
    images, half = [64, 512, 28, 28], torch.bfloat16
    assert choice("forward", images, [1, 1], 512, half, pad=0) == "linear: product 128x128"
    assert choice("forward", images, [1, 1], 512, half, pad=0, capability=90) == "linear: product_sm90 256x128"
    assert choice("weight_grad", images, [1, 1], 512, half, pad=0) == "linear: product 64x64 in 4 parts"
    for other in ({"pad": 1}, {"stride": 2, "pad": 0}, {"groups": 2, "pad": 0}):
        assert choice("forward", images, [1, 1], 512, half, **other) == "product 128x128"
    with pytest.raises(RuntimeError, match="direction must be forward, input_grad or weight_grad, got back"):
        choice("back", [1, 1, 3, 3], [3, 3], 1, torch.float32)
    machine.ops.use_masked_library("faster")
    for direction in ("forward", "input_grad", "weight_grad"):
        assert choice(direction, [32, 256, 56, 56], [3, 3], 256, torch.bfloat16) == "library"
        assert choice(direction, images, [1, 1], 512, half, pad=0) == "linear: library"
        assert choice(direction, [1, 16, 7, 7], [3, 3], 16, torch.bfloat16).startswith("product")


@each_machine
def test_empty_operands(machine):
    def zeros(*shape):
        return torch.zeros(shape, device=machine.device)

    def bits(*shape):
        return Mask.full(shape).bits.to(machine.device)

    ops, geometry = machine.ops, ([1, 1], [1, 1], [1, 1], 1)
    assert ops.masked_conv2d(zeros(0, 3, 5, 5), zeros(4, 3, 3, 3), bits(4, 3, 3, 3), [], None, *geometry).numel() == 0
    bias = torch.arange(4.0, device=machine.device)
    y = ops.masked_conv2d(zeros(2, 0, 5, 5), zeros(4, 0, 3, 3), bits(4, 0, 3, 3), [], bias, *geometry)
    assert torch.equal(y, bias[:, None, None].expand(2, 4, 5, 5))
    dx = ops.masked_conv2d_input_grad(zeros(2, 0, 5, 5), zeros(0, 3, 3, 3), bits(0, 3, 3, 3), [], [5, 5], *geometry)
    assert dx.shape == (2, 3, 5, 5) and not dx.any()
    dw = ops.masked_conv2d_weight_grad(zeros(0, 4, 5, 5), zeros(0, 3, 5, 5), bits(4, 3, 3, 3), [], [3, 3], *geometry)
    assert dw.shape == (4, 3, 3, 3) and not dw.any()


@each_cuda_machine
def test_bad_input(machine):
    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype, device=machine.device)

    ops, geometry = machine.ops, ([1, 1], [1, 1], [1, 1], 1)
    words = zeros(4, 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"input \[1, 2, 5, 5\] does not fit weight \[4, 3, 3, 3\]"):
        ops.masked_conv2d(zeros(1, 2, 5, 5), zeros(4, 3, 3, 3), words, [], None, *geometry)
    with pytest.raises(RuntimeError, match=r"bits must have shape \[4, 1\], got \[3, 1\]"):
        ops.masked_conv2d(zeros(1, 3, 5, 5), zeros(4, 3, 3, 3), words[:3], [], None, *geometry)
    with pytest.raises(RuntimeError, match=r"plan must have no tensors, or lists .*, got 1"):
        ops.masked_conv2d(zeros(1, 3, 5, 5), zeros(4, 3, 3, 3), words, [words], None, *geometry)
    with pytest.raises(RuntimeError, match=r"plan\[2\] must have shape \[4, 9\], got \[4, 1\]"):
        ops.masked_conv2d(zeros(1, 3, 5, 5), zeros(4, 3, 3, 3), words, [words] * 3, None, *geometry)
    with pytest.raises(RuntimeError, match=r"no CUDA kernel for this convolution: an axis"):
        ops.masked_conv2d(zeros(1, 3, 1, 1), zeros(4, 3, 1, 1), words, [], None, [2**30, 1], [2**29, 0], [1, 1], 1)


@each_cuda_machine
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_single_pixels_on_hopper(machine, direction):
    """A convolution by kernels of one pixel is a product of matrices, and may be one of Hopper's."""
    batch, inp, out, side = (3, 392, 384, 16) if machine.name == "simt" else (16, 2040, 2048, 16)
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    with capability(machine, 90):
        chosen = machine.ops.masked_conv2d_choice(
            direction, [batch, inp, side, side], [1, 1], out, *geometry, torch.bfloat16, False,
            multiprocessors(machine), 90,
        )  # fmt: skip
        assert chosen.startswith("linear: product_sm90")
        x, w = torch.randn(batch, inp, side, side).bfloat16(), torch.randn(out, inp, 1, 1).bfloat16()
        dy, b = torch.randn(batch, out, side, side).bfloat16(), torch.randn(out).bfloat16()
        dense = torch.rand(w.shape) < 0.4
        kept = torch.where(dense, w, torch.zeros((), dtype=w.dtype)).double()[:, :, 0, 0]
        bits = Mask.from_dense(dense).bits.to(machine.device)
        plan = machine.ops.mask_lists(bits, inp, 1)
        xd, wd, dyd, bd = (t.to(machine.device) for t in (x, w.masked_fill(~dense, float("nan")), dy, b))
        rows = [t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]).double() for t in (x, dy)]
        poisoned(machine)
        if direction == "forward":
            got = machine.ops.masked_conv2d(xd, wd, bits, plan, bd, *geometry).permute(0, 2, 3, 1).reshape(-1, out)
            want, magnitude, terms = rows[0] @ kept.T + b.double(), rows[0].abs() @ kept.T.abs() + b.double().abs(), inp
        elif direction == "input_grad":
            got = machine.ops.masked_conv2d_input_grad(dyd, wd, bits, plan, [side, side], *geometry)
            got = got.permute(0, 2, 3, 1).reshape(-1, inp)
            want, magnitude, terms = rows[1] @ kept, rows[1].abs() @ kept.abs(), out
        else:
            got = machine.ops.masked_conv2d_weight_grad(dyd, xd, bits, plan, [1, 1], *geometry)[:, :, 0, 0]
            seen = dense[:, :, 0, 0].double()
            want, magnitude = (rows[1].T @ rows[0]) * seen, (rows[1].T.abs() @ rows[0].abs()) * seen
            terms = batch * side * side
        assert_sums_close(got.cpu(), want, magnitude, torch.bfloat16, terms + 1)
