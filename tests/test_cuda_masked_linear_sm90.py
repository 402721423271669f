"""masked_linear by Hopper's kernels (csrc/cuda/product_sm90.h) against exact sums."""

from __future__ import annotations

import threading

import pytest
import torch
from cuda_linear import check, on, operands
from device_ops import MACHINES, capability, each_cuda_machine, multiprocessors, poisoned
from maskfuse import Mask

# batch, in, out, of which every pass runs on Hopper's kernel: whole tiles and not, few multiprocessors and many.
SHAPES = {
    "simt": [(384, 384, 768), (384, 760, 384), (700, 648, 392)],
    "cuda": [(1024, 2048, 2048), (2000, 2040, 2032), (4096, 1024, 4096)],
}
PASSES = ("forward", "input_grad", "weight_grad")
each_shape = pytest.mark.parametrize("shape", range(3))
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def hopper(machine):
    with capability(machine, 90):
        yield machine


def chosen(machine, shape, dtype):
    batch, inp, out = shape
    of = multiprocessors(machine)
    return [machine.ops.masked_linear_choice(p, batch, out, inp, dtype, False, False, of, 90) for p in PASSES]


def all_passes(machine, tensors, bits, plan):
    x, w, dy, b = tensors
    poisoned(machine)
    return (
        machine.ops.masked_linear(x, w, bits, plan, b),
        machine.ops.masked_linear_input_grad(dy, w, bits, plan),
        machine.ops.masked_linear_weight_grad(dy, x, bits, plan),
    )


def check_passes(got, tensors, dense, dtype):
    """Against sums in float64, and that masked gradients are exactly 0."""
    x, w, dy, b = tensors
    effective = torch.where(dense, w, torch.zeros((), dtype=dtype))
    check(got[0], x, effective, dtype, bias=b)
    check(got[1], dy, effective.T, dtype)
    check(got[2], dy.T, x.T, dtype, factor=dense)
    masked = got[2].cpu()[~dense]
    assert torch.equal(masked, torch.zeros_like(masked)) and not masked.signbit().any()


def blocks(out, inp):
    """Few of the mask's blocks of 128 x 64 hold anything, and one row of them nothing."""
    there = torch.rand((out + 127) // 128, (inp + 63) // 64) < 0.4
    there[0] = False
    return there.repeat_interleave(128, 0).repeat_interleave(64, 1)[:out, :inp] & (torch.rand(out, inp) < 0.7)


@each_cuda_machine
@each_shape
@each_dtype
@pytest.mark.parametrize("kind", ["random", "blocks", "full", "empty"])
def test_binary_mask(hopper, machine, shape, dtype, kind):
    shape = SHAPES[machine.name][shape]
    assert all(name.startswith("product_sm90") for name in chosen(machine, shape, dtype))
    x, w, dy, b = operands(shape, dtype)
    size = (shape[2], shape[1])
    dense = {
        "random": lambda: torch.rand(size) < 0.3,
        "blocks": lambda: blocks(*size),
        "full": lambda: torch.ones(size, dtype=torch.bool),
        "empty": lambda: torch.zeros(size, dtype=torch.bool),
    }[kind]()
    w = w.masked_fill(~dense, float("nan"))  # which must not be read into any sum
    bits = Mask.from_dense(dense).bits.to(machine.device)
    on_device = on(machine, x, w, dy, b)
    for plan in ([], machine.ops.mask_lists(bits, shape[1], 1)):
        check_passes(all_passes(machine, on_device, bits, plan), (x, w, dy, b), dense, dtype)


@each_cuda_machine
def test_operands_in_larger_matrices(hopper, machine):
    """Rows that are multiples of 16 bytes apart are read where they lie; others by the portable kernel."""
    dtype, shape = torch.bfloat16, SHAPES[machine.name][0]
    x, w, dy, b = operands(shape, dtype)
    dense = torch.rand(w.shape) < 0.5
    bits = Mask.from_dense(dense).bits.to(machine.device)
    plan = machine.ops.mask_lists(bits, shape[1], 1)
    for before, behind in ((8, 16), (1, 0), (8, 3)):
        wide = [torch.nn.functional.pad(t, (before, behind), value=float("nan")) for t in (x, w, dy)]
        inside = [t[:, before : t.shape[1] - behind] for t in on(machine, *wide)]
        got = all_passes(machine, [*inside, b.to(machine.device).repeat_interleave(2)[::2]], bits, plan)
        check_passes(got, (x, w, dy, b), dense, dtype)


@each_cuda_machine
def test_rows_that_overlap(hopper, machine):
    """One gradient for all rows, as a sum's is, and windows of one array: bulk copies take neither."""
    dtype, (batch, inp, out) = torch.bfloat16, SHAPES[machine.name][0]
    x, w, dy, b = operands((batch, inp, out), dtype)
    dense = torch.rand(w.shape) < 0.5
    bits = Mask.from_dense(dense).bits.to(machine.device)
    x = torch.randn(8 * batch + inp).to(dtype).unfold(0, inp, 8)[:batch]
    dy = dy[:1].expand(batch, out)
    wd, bd = on(machine, w, b)
    xd = x.as_strided((8 * batch + inp,), (1,)).clone().to(machine.device).unfold(0, inp, 8)[:batch]
    dyd = dy[:1].clone().to(machine.device).expand(batch, out)
    check_passes(all_passes(machine, (xd, wd, dyd, bd), bits, []), (x, w, dy, b), dense, dtype)


@pytest.mark.cuda
@pytest.mark.skipif(MACHINES["cuda"] is None, reason="needs a GPU and the CUDA library")
def test_thread_whose_first_work_on_the_device_this_is():
    """It has no context of the device's yet, which the driver asks for where it writes the maps of bulk copies."""
    machine = MACHINES["cuda"]
    with capability(machine, 90):
        shape = SHAPES["cuda"][0]
        tensors = on(machine, *operands(shape, torch.bfloat16))
        bits = Mask.random((shape[2], shape[1]), 0.5).bits.to(machine.device)
        want = all_passes(machine, tensors, bits, [])
        kept = [torch.empty_like(t) for t in want]
        del kept  # the allocator has room, and does not call the runtime
        got: list = []
        thread = threading.Thread(target=lambda: got.extend(all_passes(machine, tensors, bits, [])))
        thread.start()
        thread.join()
        assert len(got) == 3 and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@each_cuda_machine
@each_dtype
def test_repeatable(hopper, machine, dtype):
    """Bitwise, in whatever order threads, copies and products run."""
    shape = SHAPES[machine.name][2]
    tensors = on(machine, *operands(shape, dtype))
    bits = Mask.random((shape[2], shape[1]), 0.3).bits.to(machine.device)
    plan = machine.ops.mask_lists(bits, shape[1], 1)
    first = all_passes(machine, tensors, bits, plan)
    for seed in range(3):
        if machine.name == "simt":
            machine.ops.seed(seed)
        for a, b in zip(first, all_passes(machine, tensors, bits, plan), strict=True):
            assert torch.equal(a, b)


@each_cuda_machine
def test_non_finite_numbers(hopper, machine):
    """Active weights, inputs and gradients that are not finite come through; sums overflow as the type does."""
    dtype, shape = torch.float16, SHAPES[machine.name][0]
    x, w, dy, b = operands(shape, dtype)
    dense = torch.ones(w.shape, dtype=torch.bool)
    dense[:, 5] = False
    w[3, 7], w[:, 5], x[11, 9], dy[2] = float("inf"), float("nan"), float("nan"), 6e4
    bits = Mask.from_dense(dense).bits.to(machine.device)
    y, dx, dw = all_passes(machine, on(machine, x, w, dy, b), bits, [])
    assert y[:, 3].isinf().sum() >= shape[0] - 1 and y[11].isnan().all()
    assert y[12:, 4:].isfinite().all() and not dx[:, 5].any()
    assert dw[:, 9].isnan().all() and not dw[:, 5].any()
    want = (dy.double().T @ x[:, 10:].double()).to(dtype)
    assert want.isinf().any() and torch.equal(dw[:, 10:].cpu().isinf(), want.isinf())
