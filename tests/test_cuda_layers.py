"""Layers and functions on a GPU: the same numbers as on the CPU, streams, graphs, devices. They need one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import maskfuse
import pytest
import torch
from maskfuse import Mask
from torch.nn import functional as F

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not maskfuse.build_info()["cuda"]["loaded"],
        reason="needs a GPU and the CUDA library",
    ),
]


def linear(dtype=torch.float32):
    layer = maskfuse.nn.MaskedLinear(200, 120, mask=Mask.random((120, 200), 0.3)).to(dtype)
    return layer, torch.randn(37, 200, dtype=dtype)


def conv(dtype=torch.float32):
    layer = maskfuse.nn.MaskedConv2d(24, 40, 3, padding=1, mask=Mask.random((40, 24, 3, 3), 0.3)).to(dtype)
    return layer, torch.randn(3, 24, 10, 9, dtype=dtype)


LAYERS = pytest.mark.parametrize("make", [linear, conv], ids=["linear", "conv"])


def step(layer, x, dy):
    """Output, input gradient and weight gradient. `dy` is given: what is computed from y carries y's rounding."""
    x = x.detach().requires_grad_()
    layer.zero_grad(set_to_none=True)
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, layer.weight.grad.clone()  # a copy: layer.cuda() moves the gradient itself


@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_same_numbers_as_on_the_cpu(make, dtype):
    layer, x = make(dtype)
    dy = torch.randn_like(layer(x))
    want = step(layer, x, dy)
    layer.cuda()
    assert maskfuse.explain(layer, batch=37, size=(10, 9) if x.dim() == 4 else None).backend == "cuda"
    got = step(layer, x.cuda(), dy.cuda())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b)
    assert not got[2][~layer.mask.dense()].any()


@LAYERS
def test_training_step_in_a_graph(make):
    layer, x = make()
    layer.cuda()
    static = x.cuda()
    dy = torch.randn_like(layer(static))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(layer, static, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, static, dy)
    static.copy_(torch.randn_like(static))
    graph.replay()
    got = [t.clone() for t in captured]
    for a, b in zip(got, step(layer, static, dy), strict=True):
        assert torch.equal(a, b)


@LAYERS
def test_gradgradcheck(make):
    layer, x = make(torch.float64)
    layer.cuda()
    small = (x[:2, :, :4, :4] if x.dim() == 4 else x[:3]).cuda().requires_grad_()
    mask, bias = layer.mask, layer.bias
    extra = {"padding": 1} if x.dim() == 4 else {}
    op = maskfuse.masked_conv2d if x.dim() == 4 else maskfuse.masked_linear
    weight = layer.weight.detach().requires_grad_()

    def run(x, w):
        return op(x, w, mask, bias, **extra)

    assert torch.autograd.gradcheck(run, (small, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (small, weight), fast_mode=True)


@LAYERS
def test_compiled(make):
    layer, x = make()
    layer.cuda()
    want = layer(x.cuda())
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x.cuda()), want)


def test_compiled_chain_through_one_channel():
    shapes = [(1, 16, 3, 3), (16, 1, 3, 3)]
    layers = [maskfuse.nn.MaskedConv2d(s[1], s[0], 3, padding=1, mask=Mask.random(s, 0.5)) for s in shapes]
    model = torch.nn.Sequential(*layers).cuda()
    x = torch.randn(2, 16, 6, 5, device="cuda")
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_packed_layer():
    layer, x = linear(torch.bfloat16)
    layer.cuda().eval()
    x = x.cuda()
    with torch.no_grad():
        want = [layer(x[:rows]) for rows in (1, 8, 16, 37)]
        layer.pack()
        assert layer.packed_nbytes > 0
        got = [layer(x[:rows]) for rows in (1, 8, 16, 37)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_shared_memory_of_several_threads_and_of_a_graph():
    """One kernel, which asks for more with eight rows than with one: no call takes away what another one needs."""
    mask = Mask.random((4096, 4096), 0.2)
    layer = maskfuse.nn.MaskedLinear(4096, 4096, mask=mask).bfloat16().cuda().eval().pack()
    inputs = [torch.randn(rows, 4096, dtype=torch.bfloat16, device="cuda") for rows in (1, 8)]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        want = [layer(x) for x in inputs]
        with torch.cuda.graph(graph):
            captured = layer(inputs[1])
        layer(inputs[0])
    graph.replay()
    assert torch.equal(captured, want[1])

    def last_of_many(x):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(2000):
                y = layer(x)
            return y.cpu()

    with ThreadPoolExecutor(2) as threads:
        for y, right in zip(threads.map(last_of_many, inputs), want, strict=True):
            assert torch.equal(y, right.cpu())


@LAYERS
def test_bool_masks_do_not_wait_for_the_device(make):
    layer, x = make()
    layer.cuda()
    x, weight, mask = x.cuda(), torch.randn_like(layer.weight), layer.mask.dense()
    op = maskfuse.masked_conv2d if x.dim() == 4 else maskfuse.masked_linear
    extra = {"padding": 1} if x.dim() == 4 else {}
    want = op(x, weight, layer.mask, **extra)  # the first use of the kernels, which tests them
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = op(x, weight, mask, **extra)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(x, weight, mask, **extra)
    mask.logical_not_()
    graph.replay()
    assert torch.equal(captured, op(x, weight, mask, **extra))


def test_gates_and_real_valued_masks():
    x, w, s = torch.randn(50, 70), torch.randn(30, 70), torch.randn(30, 70)
    dy = torch.randn(50, 30)  # given: what is computed from the output carries its rounding
    for op in (maskfuse.gated_linear, maskfuse.masked_linear):
        gradients = []
        for device in ("cpu", "cuda"):
            operands = [t.clone().to(device).requires_grad_() for t in (x, w, s)]
            op(*operands).backward(dy.to(device))
            gradients.append([t.grad.cpu() for t in operands])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_channels_of_samples():
    x, w = torch.randn(6, 16, 5, 5), torch.randn(8, 16, 3, 3)
    channels = torch.rand(6, 16) < 0.5
    mask = Mask.random(w.shape, 0.5)
    want = maskfuse.masked_conv2d(x, w, mask, padding=1, channels=channels)
    got = maskfuse.masked_conv2d(x.cuda(), w.cuda(), mask.to("cuda"), padding=1, channels=channels.cuda())
    torch.testing.assert_close(got.cpu(), want)
    index = torch.tensor([3, 0, 3, 15])
    for a, b in ((x, index), (x.contiguous(memory_format=torch.channels_last), index)):
        torch.testing.assert_close(maskfuse.channel_gather(a.cuda(), b.cuda()).cpu(), a[:, b], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "whole channels"])
def test_channels_that_a_kernel_reads_in_place(masked, dtype):
    """A training step with channels, the same numbers as on the CPU; captured, which a synchronisation would end."""
    mask = Mask.channels((40, 136, 3, 3), inp=torch.randperm(136)[:100]) if masked else Mask.full((40, 136, 3, 3))
    layer = maskfuse.nn.MaskedConv2d(136, 40, 3, padding=1, mask=mask).to(dtype)
    x, channels = torch.randn(3, 136, 10, 9, dtype=dtype), torch.rand(3, 136) < 0.5

    def step(x, channels):
        x = x.detach().requires_grad_()
        layer.zero_grad(set_to_none=True)
        y = layer(x, channels)
        y.sin().sum().backward()
        return y.detach(), x.grad, layer.weight.grad.clone()

    want = step(x, channels)
    layer.cuda()
    static, active = x.cuda(), channels.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = step(static, active)
    torch.cuda.current_stream().wait_stream(side)
    for a, b in zip(got, want, strict=True):
        bound = 0.05 if dtype == torch.bfloat16 else 1e-2  # torch sums float32 in TF32
        torch.testing.assert_close(a.cpu(), b, atol=bound, rtol=bound)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static, active)
    active.logical_not_()
    graph.replay()
    results = [t.clone() for t in captured]
    for a, b in zip(results, step(static, active), strict=True):
        assert torch.equal(a, b) or (dtype == torch.float32 and not masked)  # torch's own sums there
    inactive = results[1][~active]
    assert torch.equal(inactive, torch.zeros_like(inactive))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device():
    layer, x = linear()
    layer.to("cuda:1")
    assert torch.cuda.current_device() == 0
    y = layer(x.to("cuda:1"))
    torch.testing.assert_close(y.cpu(), F.linear(x, layer.weight.cpu(), layer.bias.cpu()))
    with pytest.raises(RuntimeError, match="one CUDA device"):
        torch.ops.maskfuse.masked_linear(x.cuda(0), layer.weight, layer.mask.bits, [], None)
