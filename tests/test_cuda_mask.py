"""Mask packing by the CUDA kernels against the CPU's."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from device_ops import each_cuda_machine, each_machine
from maskfuse import Mask

needs_gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@each_machine
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (7, 33), (64, 1000), (5, 27), (3000, 40)], ids=str)
def test_pack_and_unpack(machine, shape):
    dense = torch.rand(shape) < 0.5
    bits = machine.ops.mask_pack(dense.to(machine.device))
    assert torch.equal(bits.cpu(), Mask.from_dense(dense).bits)
    assert torch.equal(machine.ops.mask_unpack(bits, shape[1]).cpu(), dense)


@each_machine
def test_strided_operands(machine):
    dense = (torch.rand(40, 70) < 0.5).to(machine.device)
    bits = machine.ops.mask_pack(dense.T)
    assert torch.equal(bits.cpu(), Mask.from_dense(dense.T.cpu()).bits)
    spread = torch.zeros(bits.shape[0], 2 * bits.shape[1], dtype=torch.int32, device=machine.device)
    spread[:, ::2] = bits
    assert torch.equal(machine.ops.mask_unpack(spread[:, ::2], 40).cpu(), dense.T.cpu())


@each_cuda_machine
def test_bad_input(machine):
    with pytest.raises(RuntimeError, match=r"mask_pack: dense must be Bool, got Float"):
        machine.ops.mask_pack(torch.ones(2, 3, device=machine.device))
    with pytest.raises(RuntimeError, match=r"dense must have shape \[rows, columns\], got \[3\]"):
        machine.ops.mask_pack(torch.ones(3, dtype=torch.bool, device=machine.device))
    with pytest.raises(RuntimeError, match=r"bits must have shape \[2, 2\], got \[2, 1\]"):
        machine.ops.mask_unpack(torch.ones(2, 1, dtype=torch.int32, device=machine.device), 33)


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_mask_on_the_device(self):
        dense = torch.rand(5, 3, 3, 3) < 0.5
        mask = Mask.from_dense(dense.cuda())
        assert mask.device.type == "cuda" and torch.equal(mask.bits.cpu(), Mask.from_dense(dense).bits)
        assert torch.equal(mask.dense().cpu(), dense)
        assert mask == Mask.from_dense(dense) and mask.active == int(dense.sum())

    def test_stream_and_graph(self):
        dense = torch.rand(64, 1000, device="cuda") < 0.5
        want = Mask.from_dense(dense).bits
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = torch.ops.maskfuse.mask_pack(dense)
        stream.synchronize()
        assert torch.equal(got, want)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = torch.ops.maskfuse.mask_pack(dense)
        dense.logical_not_()
        graph.replay()
        assert torch.equal(captured, Mask.from_dense(dense).bits)

    def test_layer_follows_the_device(self):
        layer = maskfuse.nn.MaskedLinear(40, 6, mask=Mask.random((6, 40), 0.5))
        mask = layer.mask
        layer.cuda()
        assert layer.mask.device.type == "cuda" and layer.mask == mask
        y = layer(torch.ones(2, 40, device="cuda"))
        torch.testing.assert_close(y.cpu(), layer.cpu()(torch.ones(2, 40)))

    def test_wrong_device_is_refused(self):
        with pytest.raises(ValueError, match=r"one device, got cpu and cuda"):
            maskfuse.masked_linear(torch.ones(2, 4).cuda(), torch.ones(3, 4).cuda(), Mask.full((3, 4)))
