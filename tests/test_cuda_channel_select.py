"""channel_select and its adjoint by the CUDA kernels against the reference and the CPU op."""

from __future__ import annotations

import pytest
import torch
from device_ops import each_cuda_machine, each_machine
from layouts import LAYOUTS, check_same, expected_format, values
from maskfuse import reference
from test_cuda_channel_gather import needs_gpu, on

CPU = torch.ops.maskfuse


def masks(samples, channels):
    mask = torch.rand(samples, channels) > 0.6
    mask[0], mask[1] = False, True
    return mask


def check(machine, x, mask, most):
    got = machine.ops.channel_select(on(machine, x), on(machine, mask), most).cpu()
    check_same(got, reference.channel_select(x, mask, most))
    grad = machine.ops.channel_select_input_grad(on(machine, got), on(machine, mask), most).cpu()
    check_same(grad, CPU.channel_select_input_grad(got, mask, most))
    taken = mask & (mask.long().cumsum(1) <= most)
    check_same(grad, torch.where(taken.view(*mask.shape, *[1] * (x.dim() - 2)), x, torch.zeros_like(x)))
    return got


@each_cuda_machine
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trailing", [(1,), (7,), (1, 1), (3, 5), (2, 3, 2)], ids=str)
def test_layouts_and_shapes(machine, trailing, layout):
    mask = masks(6, 19)
    for dtype in (torch.float32, torch.bfloat16):
        x = LAYOUTS[layout](values((6, 19, *trailing), dtype))
        for most in (1, 7, 19, 22):
            got = check(machine, x, mask, most)
            assert got.is_contiguous(memory_format=expected_format(layout, trailing))


@each_machine
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float16, torch.float64, torch.complex128], ids=str)
def test_dtypes(machine, dtype):
    for trailing in ((), (3, 3)):
        check(machine, values((6, 19, *trailing), dtype), masks(6, 19), 9)


@each_machine
@pytest.mark.parametrize("channels", [31, 32, 33, 127, 128, 129, 500])
def test_lists_of_many_chunks(machine, channels):
    mask = masks(9, channels)
    for most in (40, channels):
        check(machine, values((9, channels), torch.float32), mask, most)
        check(machine, values((9, channels), torch.float32), mask.T.contiguous().T, most)


@each_machine
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0)], ids=str)
def test_empty(machine, shape):
    x, mask = torch.zeros(shape, device=machine.device), torch.ones(shape[:2], dtype=torch.bool, device=machine.device)
    for most in (0, 2):
        got = machine.ops.channel_select(x, mask, most)
        assert got.shape == (shape[0], most, *shape[2:]) and not got.any()
        grad = machine.ops.channel_select_input_grad(got, mask, most)
        assert grad.shape == x.shape and not grad.any()


@each_cuda_machine
def test_bad_input(machine):
    x, mask = torch.randn(2, 4, 3, device=machine.device), torch.ones(2, 4, dtype=torch.bool, device=machine.device)
    for call, message in (
        (lambda: machine.ops.channel_select(x, mask.int(), 2), r"channel_select: mask must be Bool, got Int"),
        (lambda: machine.ops.channel_select(x, mask[:1], 2), r"mask must have shape \[2, 4\], got \[1, 4\]"),
        (lambda: machine.ops.channel_select(x, mask, -1), r"max_channels must be at least 0"),
        (lambda: machine.ops.channel_select_input_grad(x, mask, 3), r"grad must have 3 channels and mask a row"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_stream_and_graph(self):
        x, mask = torch.randn(16, 64, 14, 14, device="cuda"), torch.rand(16, 64, device="cuda") > 0.5
        want = reference.channel_select(x, mask, 40)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = CPU.channel_select(x, mask, 40)
        stream.synchronize()
        assert torch.equal(got, want)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = CPU.channel_select(x, mask, 40)
            grad = CPU.channel_select_input_grad(captured, mask, 40)
        mask.logical_not_()
        graph.replay()
        assert torch.equal(captured, reference.channel_select(x, mask, 40))
        assert torch.equal(grad.cpu(), CPU.channel_select_input_grad(captured.cpu(), mask.cpu(), 40))
