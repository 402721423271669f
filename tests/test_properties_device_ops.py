"""The CUDA kernels, on the host or on a GPU, on drawn shapes, strides, masks and dtypes, against float64."""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES
from device_ops import each_cuda_machine

pytest.importorskip("hypothesis")
from drawn import check_examples, check_masked_gradient, check_sums, drawn_mask, laid_out, spoiled
from hypothesis import strategies as st
from maskfuse import reference


def with_gradients(forward, backward):
    """An op and the ops of its gradients as one function, on tensors that the machine has."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *operands):
            ctx.save_for_backward(*operands)
            return forward(*operands)

        @staticmethod
        def backward(ctx, grad):
            return backward(grad, *ctx.saved_tensors)

    return Function.apply


def operands(draw, machine):
    dtype = draw(st.sampled_from(DTYPES))
    batch, out, inp = (draw(st.one_of(st.integers(1, 40), st.sampled_from([1, 16, 64, 65, 130]))) for _ in range(3))
    tensors = torch.randn(batch, inp), torch.randn(out, inp)
    return [laid_out(draw, t.to(dtype)).to(machine.device) for t in tensors]


def gradient(draw):
    return lambda y: laid_out(draw, torch.randn(y.shape).to(y.dtype)).to(y.device)


def check_linear(draw, machine):
    x, w = operands(draw, machine)
    mask = drawn_mask(draw, w.shape)
    w = spoiled(draw, w, mask)
    ops, bits = machine.ops, mask.bits.to(machine.device)
    plan = ops.mask_lists(bits, w.shape[1], 1) if draw(st.booleans()) else []
    call = with_gradients(
        lambda x, w: ops.masked_linear(x, w, bits, plan, None),
        lambda dy, x, w: (
            ops.masked_linear_input_grad(dy, w, bits, plan),
            ops.masked_linear_weight_grad(dy, x, bits, plan),
        ),
    )
    terms = w.shape[1], w.shape[0], x.shape[0]
    got = check_sums(call, lambda x, w: reference.masked_linear(x, w, mask), (x, w), gradient(draw), terms)
    check_masked_gradient(got[2].cpu(), mask)


@each_cuda_machine
def test_masked_linear(machine):
    check_examples(check_linear, machine=machine)


def check_gated(draw, machine):
    x, w = operands(draw, machine)
    scores = laid_out(draw, torch.randn(w.shape).to(w.dtype)).to(machine.device)
    ops = machine.ops
    call = with_gradients(
        lambda x, w, s: ops.gated_linear(x, w, s, None),
        lambda dy, x, w, s: (ops.gated_linear_input_grad(dy, w, s), *ops.gated_linear_weight_grad(dy, x, w, s)),
    )
    terms = w.shape[1], w.shape[0], x.shape[0], x.shape[0]
    half = w.dtype.itemsize == 2
    check_sums(call, reference.gated_linear, (x, w, scores), gradient(draw), terms, scores=2, rounded=half)


@each_cuda_machine
def test_gated_linear(machine):
    check_examples(check_gated, machine=machine)


def check_conv2d(draw, machine):
    dtype, kernel = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([(1, 1), (3, 3), (2, 3)]))
    groups = draw(st.sampled_from([1, 1, 2]))
    batch, inp, out = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    size = draw(st.integers(3, 9)), draw(st.integers(3, 9))
    geometry = [[draw(st.integers(1, 2))] * 2, [draw(st.integers(0, 2))] * 2, [1, 1], groups]
    x, w = torch.randn(batch, inp * groups, *size), torch.randn(out * groups, inp, *kernel)
    x, w = (laid_out(draw, t.to(dtype)).to(machine.device) for t in (x, w))
    mask = drawn_mask(draw, w.shape)
    w = spoiled(draw, w, mask)
    ops, bits = machine.ops, mask.bits.to(machine.device)
    call = with_gradients(
        lambda x, w: ops.masked_conv2d(x, w, bits, [], None, *geometry),
        lambda dy, x, w: (
            ops.masked_conv2d_input_grad(dy, w, bits, [], list(size), *geometry),
            ops.masked_conv2d_weight_grad(dy, x, bits, [], list(kernel), *geometry),
        ),
    )

    def exact(x, w):
        return reference.masked_conv2d(x, w, mask, None, *geometry)

    pixels = x.shape[0] * size[0] * size[1] * 4
    terms = w[0].numel(), w.numel(), pixels
    got = check_sums(call, exact, (x, w), gradient(draw), terms, rounded=w.dtype.itemsize == 2)
    check_masked_gradient(got[2].cpu(), mask)


@each_cuda_machine
def test_masked_conv2d(machine):
    check_examples(check_conv2d, machine=machine)
