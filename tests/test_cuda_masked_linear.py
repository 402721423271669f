"""masked_linear, soft_masked_linear and gated_linear by the CUDA kernels against exact sums."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import DTYPES
from cuda_linear import SHAPES, check, on, operands
from device_ops import comparison, each_cuda_machine, each_machine, poisoned, with_library
from maskfuse import Mask


@with_library
@each_cuda_machine
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_mask(machine, library, shape, dtype, density):
    compare = partial(check, close=comparison(machine, library))
    x, w, dy, b = operands(shape, dtype)
    mask = Mask.random((shape[2], shape[1]), density)
    dense = mask.dense()
    w = w.masked_fill(~dense, float("nan"))  # which must not be read into any sum
    effective = torch.where(dense, w, torch.zeros((), dtype=dtype))
    bits = mask.bits.to(machine.device)
    plans = [[], machine.ops.mask_lists(bits, shape[1], 1)]
    xd, wd, dyd, bd = on(machine, x, w, dy, b)
    for plan in plans:
        poisoned(machine)
        compare(machine.ops.masked_linear(xd, wd, bits, plan, bd), x, effective, dtype, bias=b)
        compare(machine.ops.masked_linear_input_grad(dyd, wd, bits, plan), dy, effective.T, dtype)
    dw = machine.ops.masked_linear_weight_grad(dyd, xd, bits, [])
    compare(dw, dy.T, x.T, dtype, factor=dense)
    masked = dw.cpu()[~dense]
    assert torch.equal(masked, torch.zeros_like(masked)) and not masked.signbit().any()


@with_library
@each_cuda_machine
@pytest.mark.parametrize("gate", [False, True], ids=["factor", "gate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_real_valued_mask(machine, library, shape, dtype, gate):
    compare = partial(check, close=comparison(machine, library))
    x, w, dy, b = operands(shape, dtype)
    soft = torch.randn(shape[2], shape[1]).to(dtype)
    factor = torch.sigmoid(soft.double()) if gate else soft.double()
    xd, wd, dyd, bd, sd = on(machine, x, w, dy, b, soft)
    ops = machine.ops
    effective = w.double() * factor
    poisoned(machine)
    if gate:
        compare(ops.gated_linear(xd, wd, sd, bd), x, effective, dtype, bias=b, rounded=True)
        compare(ops.gated_linear_input_grad(dyd, wd, sd), dy, effective.T, dtype, rounded=True)
        dw, ds = ops.gated_linear_weight_grad(dyd, xd, wd, sd)
        compare(dw, dy.T, x.T, dtype, factor=factor, rounded=True)
        slope = w.double() * factor * torch.sigmoid(-soft.double())  # 1 - factor would cancel
        compare(ds, dy.T, x.T, dtype, factor=slope, rounded=True)
    else:
        compare(ops.soft_masked_linear(xd, wd, sd, bd), x, effective, dtype, bias=b, rounded=True)
        compare(ops.soft_masked_linear_input_grad(dyd, wd, sd), dy, effective.T, dtype, rounded=True)
        compare(ops.soft_masked_linear_weight_grad(dyd, xd, sd), dy.T, x.T, dtype, factor=factor, rounded=True)


@with_library
@each_machine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_and_strided_operands(machine, library, dtype):
    compare = partial(check, close=comparison(machine, library))
    shape = (21, 75, 34)
    x, w, dy, b = operands(shape, dtype, unaligned=True)
    mask = Mask.random((shape[2], shape[1]), 0.4)
    effective = torch.where(mask.dense(), w, torch.zeros((), dtype=dtype))
    bits = mask.bits.to(machine.device)
    xd, wd, dyd, bd = on(machine, x, w, dy, b)
    compare(machine.ops.masked_linear(xd, wd, bits, [], bd), x, effective, dtype, bias=b)
    compare(machine.ops.masked_linear_input_grad(dyd, wd, bits, []), dy, effective.T, dtype)
    compare(machine.ops.masked_linear_weight_grad(dyd, xd, bits, []), dy.T, x.T, dtype, factor=mask.dense())
    # Columns that are not contiguous, leading dimensions, a broadcast row, a bias with a stride.
    xt = x.T.contiguous().to(machine.device).T
    compare(machine.ops.masked_linear(xt.reshape(3, 7, 75), wd, bits, [], None).reshape(21, 34), x, effective, dtype)
    row = xd[:1].expand(4, 75)
    compare(machine.ops.masked_linear(row, wd, bits, [], bd.repeat_interleave(2)[::2]), x[:1].expand(4, 75), effective,
          dtype, bias=b)  # fmt: skip


@each_machine
def test_empty_operands(machine):
    def empty(*shape):
        return torch.zeros(shape, device=machine.device)

    def bits(out, inp):
        return Mask.full((out, inp)).bits.to(machine.device)

    ops = machine.ops
    assert ops.masked_linear(empty(0, 5), empty(3, 5), bits(3, 5), [], None).shape == (0, 3)
    assert ops.masked_linear(empty(2, 5), empty(0, 5), bits(0, 5), [], None).shape == (2, 0)
    bias = torch.arange(3.0, device=machine.device)
    assert torch.equal(ops.masked_linear(empty(2, 0), empty(3, 0), bits(3, 0), [], bias), bias.expand(2, 3))
    assert not ops.masked_linear_input_grad(empty(2, 0), empty(0, 5), bits(0, 5), []).any()
    assert not ops.masked_linear_weight_grad(empty(0, 3), empty(0, 5), bits(3, 5), []).any()
    lists = ops.mask_lists(bits(0, 5), 5, 1)
    assert [t.tolist() for t in lists] == [[], [[0]]]


@each_machine
def test_block_masks_skip_what_is_empty(machine):
    """A NaN in the input that meets only blocks left out shows that they are not read: 0 * NaN would be NaN."""
    active = torch.tensor([[True, False, True], [False, False, True]])
    mask = Mask.blocks(active, (128, 64))
    x, w = torch.randn(9, 192).bfloat16(), torch.randn(256, 192).bfloat16()
    bits = mask.bits.to(machine.device)
    plan = machine.ops.mask_lists(bits, 192, 1)
    assert plan[0].tolist() == [[2, 0, 2, 0], [1, 2, 0, 0]]
    assert plan[1].tolist() == [[2, 0, 1, 0, 0], [4, 0, 1, 2, 3]]
    x[:, 64:128] = float("nan")
    got = machine.ops.masked_linear(*on(machine, x, w), bits, plan, None).cpu()
    effective = torch.where(mask.dense(), w, torch.zeros((), dtype=w.dtype))
    check(got, x.nan_to_num(), effective, torch.bfloat16)


@each_machine
def test_repeatable(machine):
    x, w, dy, b = (t.to(machine.device) for t in operands((40, 1500, 70), torch.float16))
    bits = Mask.random((70, 1500), 0.5).bits.to(machine.device)

    def results():
        ops = machine.ops
        yield ops.masked_linear(x, w, bits, [], b)
        yield ops.masked_linear_input_grad(dy, w, bits, [])
        yield ops.masked_linear_weight_grad(dy, x, bits, [])

    for first, second in zip(results(), results(), strict=True):
        assert torch.equal(first, second)


@each_machine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_autocast_does_not_reach_the_library(machine, dtype):
    """An op's result has its operands' dtype, whatever torch's own products are cast to where it is called."""
    shape = (256, 70, 45)
    x, w, dy, b = operands(shape, dtype)
    mask = Mask.channels((45, 70), torch.arange(0, 45, 3), torch.arange(0, 70, 2))
    effective = torch.where(mask.dense(), w, torch.zeros((), dtype=dtype))
    bits = mask.bits.to(machine.device)
    plan = [*machine.ops.mask_lists(bits, 70, 1), *(t.to(machine.device) for t in mask.active_channels())]
    xd, wd, dyd, bd = on(machine, x, w, dy, b)
    with torch.autocast(machine.device, dtype=torch.bfloat16):
        y = machine.ops.masked_linear(xd, wd, bits, plan, bd)
        unbiased = machine.ops.masked_linear(xd, wd, bits, plan, None)
        dx = machine.ops.masked_linear_input_grad(dyd, wd, bits, plan)
        dw = machine.ops.masked_linear_weight_grad(dyd, xd, bits, plan)
    check(y, x, effective, dtype, bias=b)
    check(unbiased, x, effective, dtype)
    check(dx, dy, effective.T, dtype)
    check(dw, dy.T, x.T, dtype, factor=mask.dense())


@each_cuda_machine
def test_bad_input(machine):
    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype, device=machine.device)

    ops, words = machine.ops, zeros(3, 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"input \[2, 4\] does not fit weight \[3, 5\]"):
        ops.masked_linear(zeros(2, 4), zeros(3, 5), words, [], None)
    with pytest.raises(RuntimeError, match=r"input and weight must have the same dtype, got Float and Half"):
        ops.masked_linear(zeros(2, 5), zeros(3, 5, dtype=torch.half), words, [], None)
    with pytest.raises(RuntimeError, match=r"bits must have shape \[3, 1\], got \[2, 1\]"):
        ops.masked_linear(zeros(2, 5), zeros(3, 5), words[:2], [], None)
    with pytest.raises(RuntimeError, match=r"bias must have shape \[3\], got \[2\]"):
        ops.masked_linear(zeros(2, 5), zeros(3, 5), words, [], zeros(2))
    with pytest.raises(RuntimeError, match=r"plan\[0\] must have shape \[1, 2\], got \[1, 3\]"):
        plan = [zeros(1, 3, dtype=torch.int32), zeros(1, 3, dtype=torch.int32)]
        ops.masked_linear(zeros(2, 5), zeros(3, 5), words, plan, None)
    with pytest.raises(RuntimeError, match=r"input must be float32, float64, bfloat16 or float16, got Int"):
        ops.masked_linear(zeros(2, 5, dtype=torch.int32), zeros(3, 5), words, [], None)
