"""Which of the CUDA kernels a product runs on: lists of blocks, packed weights, active channels."""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES, one_of
from cuda_linear import check, on, operands
from device_ops import each_cuda_machine, each_machine, poisoned
from maskfuse import Mask
from maskfuse._kernel_choice import gpu_kernel


@each_machine
@pytest.mark.parametrize("taps", [1, 4, 9])
def test_lists_of_blocks(machine, taps):
    rows, channels = 300, 150
    dense = torch.rand(rows, channels, taps) < 0.0005
    bits = Mask.from_dense(dense.reshape(rows, channels * taps)).bits.to(machine.device)
    plan = [t.cpu() for t in machine.ops.mask_lists(bits, channels * taps, taps)]
    by_tap = dense.movedim(2, 1)
    if taps > 1:
        assert torch.equal(plan[2], Mask.from_dense(by_tap.reshape(rows * taps, channels)).bits.reshape(rows, -1))
    for group, found in enumerate(plan[0].tolist()):
        part = by_tap[128 * group : 128 * (group + 1)]
        want = [t * 3 + c for t in range(taps) for c in range(3) if part[:, t, 64 * c : 64 * (c + 1)].any()]
        assert found == [len(want), *want, *[0] * (len(found) - 1 - len(want))]
    for group, found in enumerate(plan[1].tolist()):
        part = by_tap[:, :, 128 * group : 128 * (group + 1)]
        want = [t * 5 + r for t in range(taps) for r in range(5) if part[64 * r : 64 * (r + 1), t].any()]
        assert found == [len(want), *want, *[0] * (len(found) - 1 - len(want))]


@each_machine
@pytest.mark.parametrize("density", [0.0, 0.08, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 3), (4, 300, 50), (16, 136, 130), (9, 700, 33)], ids=str)
def test_packed_weight(request, machine, shape, dtype, density):
    one_of(request, machine.name, 8)
    x, w, _, b = operands(shape, dtype)
    mask = Mask.random((shape[2], shape[1]), density)
    dense = mask.dense()
    effective = torch.where(dense, w, torch.zeros((), dtype=dtype))
    bits = mask.bits.to(machine.device)
    xd, wd, bd = on(machine, x, w.masked_fill(~dense, float("nan")), b)
    lists = machine.ops.mask_lists(bits, shape[1], 1)
    packed = machine.ops.masked_linear_pack(wd, bits, lists)
    nothing = torch.full_like(wd, float("nan"))  # the weight itself is not read
    poisoned(machine)
    for rows in {1, shape[0]}:
        got = machine.ops.masked_linear(xd[:rows], nothing, bits, [*lists, *packed], bd)
        check(got, x[:rows], effective, dtype, bias=b)
    leading = machine.ops.masked_linear(xd[:1, None].expand(1, 2, -1), nothing, bits, [*lists, *packed], None)
    check(leading[0], x[:1].expand(2, -1), effective, dtype)
    # More rows, and another dtype than was packed, read the weight.
    many = xd[:1].expand(17, -1)
    check(machine.ops.masked_linear(many, wd, bits, [*lists, *packed], None), x[:1].expand(17, -1), effective, dtype)
    other = torch.float32 if dtype != torch.float32 else torch.float64
    got = machine.ops.masked_linear(xd.to(other), wd.to(other), bits, [*lists, *packed], None)
    check(got, x, effective, other)
    with pytest.raises(RuntimeError, match=r"plan must have no tensors, or lists .* got 3"):
        machine.ops.masked_linear(xd, wd, bits, [*lists, packed[0]], None)
    if machine.name == "triton":
        with pytest.raises(RuntimeError, match="plan does not hold a packed weight"):
            machine.ops.masked_linear(xd, wd, bits, [*lists, packed[0], packed[1].int(), *packed[2:]], None)
        return
    with pytest.raises(RuntimeError, match="plan does not hold a packed weight"):
        machine.ops.masked_linear(xd, wd, bits, [*lists, packed[0], packed[1], packed[2][0:0, 0]], None)


@each_machine
@pytest.mark.parametrize("used", [(8, 34), (8, 32), (7, 33)], ids=str)
def test_packed_weight_of_another_shape(machine, used):
    """Of 33 and 34 columns the bits take the same words, and yet a call would read past its input."""

    def operands(out, inp):
        mask = Mask.random((out, inp), 0.5).bits.to(machine.device)
        return torch.randn(out, inp, device=machine.device), mask, machine.ops.mask_lists(mask, inp, 1)

    packed = machine.ops.masked_linear_pack(*operands(8, 33))
    w, bits, lists = operands(*used)
    x = torch.randn(2, used[1], device=machine.device)
    with pytest.raises(RuntimeError, match=rf"packed weight of shape \[8, 33\], weight has \[{used[0]}, {used[1]}\]"):
        machine.ops.masked_linear(x, w, bits, [*lists, *packed], None)


@each_machine
def test_empty_lists_visit_all_blocks(machine):
    """Those of a mask whose blocks are not worth leaving out (LISTED_SHARE)."""
    x, w, dy, b = on(machine, *operands((70, 130, 200), torch.float32))
    bits = Mask.random((200, 130), 0.5).bits.to(machine.device)
    plan, ops = [lists[:0] for lists in machine.ops.mask_lists(bits, 130, 1)], machine.ops
    assert torch.equal(ops.masked_linear(x, w, bits, plan, b), ops.masked_linear(x, w, bits, [], b))
    for call, *given in ((ops.masked_linear_input_grad, dy, w), (ops.masked_linear_weight_grad, dy, x)):
        assert torch.equal(call(*given, bits, plan), call(*given, bits, []))
    image, kernel = torch.randn(2, 72, 7, 6, device=machine.device), torch.randn(40, 72, 3, 3, device=machine.device)
    bits, geometry = Mask.random(kernel.shape, 0.5).bits.to(machine.device), ([1, 1], [1, 1], [1, 1], 1)
    of_rows, of_channels, by_taps = ops.mask_lists(bits, 648, 9)
    plan = [of_rows[:0], of_channels[:0], by_taps]
    y, dx = (
        (
            ops.masked_conv2d(image, kernel, bits, some, None, *geometry),
            ops.masked_conv2d_input_grad(image[:, :40], kernel, bits, some, [7, 6], *geometry),
        )
        for some in (plan, [])
    )
    assert all(map(torch.equal, y, dx))


@each_cuda_machine
def test_choice_of_kernel(machine):
    def choice(direction, batch, out, inp, dtype, channels=False, capability=80, lists=False):
        return machine.ops.masked_linear_choice(direction, batch, out, inp, dtype, channels, lists, 132, capability)

    half = torch.bfloat16
    assert choice("forward", 8192, 4096, 4096, half) == "product 128x128"
    assert choice("forward", 16, 4096, 4096, half) == "product 64x64 in 4 parts"
    assert choice("weight_grad", 1024, 64, 64, half) == "product 64x64 in 4 parts"
    assert choice("input_grad", 64, 64, 64, torch.float16) == "product 64x64"
    assert choice("input_grad", 4096, 4096, 4096, torch.float32) == "element"
    assert choice("weight_grad", 256, 64, 64, half, channels=True) == "library"
    assert choice("weight_grad", 255, 64, 64, half, channels=True) == "product 64x64"
    # Hopper's: whole tiles, half types and aligned rows only, on that capability only.
    assert choice("forward", 8192, 4096, 4096, half, capability=90) == "product_sm90 256x128"
    assert choice("weight_grad", 1024, 4096, 4096, torch.float16, capability=90) == "product_sm90 256x128"
    assert choice("input_grad", 512, 4096, 4096, half, capability=90) == "product_sm90 128x128"
    assert choice("forward", 16, 4096, 4096, half, capability=90) == "product 64x64 in 4 parts"
    assert choice("forward", 8192, 4096, 4097, half, capability=90) == "product 128x128"
    assert choice("forward", 8192, 4096, 4096, half, capability=100) == "product 128x128"
    assert choice("forward", 8192, 4096, 4096, torch.float32, capability=90) == "element"
    with pytest.raises(RuntimeError, match="direction must be forward, input_grad or weight_grad, got back"):
        choice("back", 1, 1, 1, half)
    with pytest.raises(RuntimeError, match="multiprocessors must be positive and sizes must not be negative"):
        machine.ops.masked_linear_choice("forward", 8, 8, 8, half, False, False, 0, 90)
    with pytest.raises(RuntimeError, match="sizes must not be negative"):
        choice("forward", -1, 8, 8, half)
    # The library, where a pass over the weight costs little beside the product, and no blocks are left out.
    machine.ops.use_masked_library("faster")
    for direction in ("forward", "input_grad", "weight_grad"):
        assert choice(direction, 8192, 4096, 4096, half, capability=90) == "library"
        assert choice(direction, 8192, 4096, 4096, torch.float32, capability=90) == "library"
        assert choice(direction, 8192, 4096, 4096, torch.float32, capability=90, lists=True) == "library"
        assert choice(direction, 8192, 4096, 4096, half, capability=90, lists=True) == "product_sm90 256x128"
        assert choice(direction, 63, 4096, 4096, half) != "library"
        assert choice(direction, 256, 256, 256, half) != "library"
    with pytest.raises(RuntimeError, match="when must be never, faster or always, got now"):
        machine.ops.use_masked_library("now")


@each_cuda_machine
def test_explained_kernels(machine):
    def explained(direction, mask, batch, packed=False):
        return gpu_kernel(machine.ops, direction, mask, (batch,), torch.bfloat16, packed, (132, 80))

    unstructured, channels = Mask.random((128, 256), 0.5), Mask.channels((128, 256), torch.arange(64))
    assert explained("forward", unstructured, 16, packed=True) == "decode"
    assert explained("forward", unstructured, 17, packed=True) == "product 64x64"
    assert explained("input_grad", unstructured, 16, packed=True) == "product 64x64"
    assert explained("forward", channels, 256) == "library" and explained("forward", channels, 8) != "library"
    small = Mask.channels((32, 64), torch.arange(16))  # has no plan, and so no list of its channels
    assert explained("forward", small, 512) != "library"
    conv = Mask.random((8, 4, 3, 3), 0.5)
    about = ([2, 4, 9, 9], [3, 3], conv.bits, [], [1, 1], [1, 1], [1, 1], 1)
    assert gpu_kernel(machine.ops, "forward", conv, about, torch.float32, False, (132, 80)) == "element in 2 parts"


@each_machine
@pytest.mark.parametrize("rows, columns", [(0.5, 0.5), (0.2, 1.0), (1.0, 0.3), (0.0, 0.5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_active_channels_alone(request, machine, dtype, rows, columns):
    one_of(request, machine.name, 3)
    shape = (300, 70, 45)
    x, w, dy, b = operands(shape, dtype)
    mask = Mask.channels((45, 70), torch.rand(45) < rows, torch.rand(70) < columns)
    dense = mask.dense()
    effective = torch.where(dense, w, torch.zeros((), dtype=dtype))
    bits = mask.bits.to(machine.device)
    plan = [*machine.ops.mask_lists(bits, 70, 1), *(t.to(machine.device) for t in mask.active_channels())]
    xd, wd, dyd, bd = on(machine, x, w.masked_fill(~dense, float("nan")), dy, b)
    poisoned(machine)
    check(machine.ops.masked_linear(xd, wd, bits, plan, bd), x, effective, dtype, bias=b)
    check(machine.ops.masked_linear(xd, wd, bits, plan, None), x, effective, dtype)
    check(machine.ops.masked_linear_input_grad(dyd, wd, bits, plan), dy, effective.T, dtype)
    dw = machine.ops.masked_linear_weight_grad(dyd, xd, bits, plan)
    check(dw, dy.T, x.T, dtype, factor=dense)
    masked = dw.cpu()[~dense]
    assert torch.equal(masked, torch.zeros_like(masked)) and not masked.signbit().any()
    # Few rows, and few rows packed.
    packed = machine.ops.masked_linear_pack(wd, bits, plan)
    for few in (plan, [*plan, *packed]):
        check(machine.ops.masked_linear(xd[:9], wd, bits, few, bd), x[:9], effective, dtype, bias=b)
    with pytest.raises(RuntimeError, match=r"places of rows must have shape \[45\], got \[3\]"):
        machine.ops.masked_linear(xd, wd, bits, [*plan[:4], plan[4][:3], plan[5]], None)
