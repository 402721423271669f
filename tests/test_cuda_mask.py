"""Mask packing on a GPU against the CPU's."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from maskfuse import Mask

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (7, 33), (64, 4096), (5, 3, 3, 3), (100000, 40)], ids=str)
def test_pack_and_unpack(shape):
    dense = torch.rand(shape) < 0.5
    mask = Mask.from_dense(dense.cuda())
    assert mask.device.type == "cuda" and torch.equal(mask.bits.cpu(), Mask.from_dense(dense).bits)
    assert torch.equal(mask.dense().cpu(), dense)
    assert mask == Mask.from_dense(dense) and mask.active == int(dense.sum())


def test_stream_and_graph():
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


def test_layer_follows_the_device():
    layer = maskfuse.nn.MaskedLinear(40, 6, mask=Mask.random((6, 40), 0.5))
    mask = layer.mask
    layer.cuda()
    assert layer.mask.device.type == "cuda" and layer.mask == mask
    with pytest.warns(UserWarning, match="plain PyTorch"):
        maskfuse.backends._warned.clear()
        y = layer(torch.ones(2, 40, device="cuda"))
    torch.testing.assert_close(y.cpu(), layer.cpu()(torch.ones(2, 40)))


def test_wrong_device_is_refused():
    with pytest.raises(ValueError, match=r"one device, got cpu and cuda"):
        maskfuse.masked_linear(torch.ones(2, 4).cuda(), torch.ones(3, 4).cuda(), Mask.full((3, 4)))
