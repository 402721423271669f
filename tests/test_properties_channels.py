"""channel_gather, channel_scatter and channel_select on drawn shapes, strides, dtypes and indices: exact."""

from __future__ import annotations

import torch
from drawn import check_examples, laid_out
from hypothesis import assume
from hypothesis import strategies as st
from maskfuse import channel_gather, channel_scatter, channel_select, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def drawn_input(draw, few):
    trailing = draw(st.sampled_from([(), (5,), (3, 4), (1, 7), (2, 3, 2), (0, 2)]))
    shape = draw(st.integers(0, 5)), draw(st.integers(0, 8 if few else 40)), *trailing
    x = torch.randn(shape) if draw(st.booleans()) else torch.randint(-9, 9, shape)
    return laid_out(draw, x.to(draw(st.sampled_from(DTYPES))))


def integers(draw, shape, end):
    """An index below `end`, of either width, that may repeat entries or, where it can do without, does not."""
    count = torch.Size(shape).numel()
    if len(shape) == 1 and count <= end and draw(st.booleans()):
        index = torch.randperm(end)[:count]
    else:
        assume(end > 0 or count == 0)
        index = torch.randint(max(end, 1), shape)
    return index.to(draw(st.sampled_from([torch.int64, torch.int32])))


def check_gather(draw, few):
    x = drawn_input(draw, few)
    batch = integers(draw, (draw(st.integers(0, 6)),), x.shape[0]) if draw(st.booleans()) else None
    kept = draw(st.integers(0, 12))
    samples = x.shape[0] if batch is None else batch.shape[0]
    channels = integers(draw, (samples, kept) if draw(st.booleans()) else (kept,), x.shape[1])
    got, want = channel_gather(x, channels, batch), reference.channel_gather(x, channels, batch)
    assert got.dtype == x.dtype and torch.equal(got, want)
    if x.is_floating_point():
        # A scatter of counted ones: sums of small integers are exact in every dtype.
        leaf = x.detach().requires_grad_()
        grad = torch.randint(-2, 3, got.shape).to(x.dtype)
        (ours,) = torch.autograd.grad(channel_gather(leaf, channels, batch), leaf, grad)
        (theirs,) = torch.autograd.grad(reference.channel_gather(leaf, channels, batch), leaf, grad)
        assert torch.equal(ours, theirs)


def test_gather(backend):
    check_examples(check_gather, backend, few=backend == "triton")


def check_scatter(draw, few):
    """The inverse of a gather by an index without repetitions, zero elsewhere; back through it goes a gather."""
    x = drawn_input(draw, few)
    total = x.shape[1] + draw(st.integers(0, 9))
    channels = torch.randperm(total)[: x.shape[1]]
    if draw(st.booleans()):
        channels = torch.stack([torch.randperm(total)[: x.shape[1]] for _ in range(x.shape[0])] or [channels[:0]])
        channels = channels[: x.shape[0]].reshape(x.shape[0], x.shape[1])
    got = channel_scatter(x, channels, total)
    assert got.shape == (x.shape[0], total, *x.shape[2:]) and got.dtype == x.dtype
    assert torch.equal(reference.channel_gather(got, channels), x)
    rows = channels.expand(x.shape[0], -1)
    absent = torch.ones(x.shape[0], total, dtype=torch.bool).scatter(1, rows, False)
    assert not got[absent].any()
    if x.is_floating_point():
        assert not got[absent].signbit().any()
        leaf, grad = x.detach().requires_grad_(), torch.randn(got.shape).to(x.dtype)
        (ours,) = torch.autograd.grad(channel_scatter(leaf, channels, total), leaf, grad)
        assert torch.equal(ours, reference.channel_gather(grad, channels))


def test_scatter(backend):
    check_examples(check_scatter, backend, few=backend == "triton")


def check_select(draw, few):
    x = drawn_input(draw, few)
    mask = laid_out(draw, torch.rand(x.shape[:2]) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    most = draw(st.one_of(st.none(), st.integers(0, 50)))
    values, counts = channel_select(x, mask, most)
    kept = int(mask.sum(1).max()) if most is None and mask.numel() else most or 0
    want = reference.channel_select(x, mask, kept)
    assert torch.equal(values, want) and torch.equal(counts.long(), mask.sum(1).clamp(max=kept))
    if x.is_floating_point():
        leaf, grad = x.detach().requires_grad_(), torch.randn(values.shape).to(x.dtype)
        (ours,) = torch.autograd.grad(channel_select(leaf, mask, most)[0], leaf, grad)
        (theirs,) = torch.autograd.grad(reference.channel_select(leaf, mask, kept), leaf, grad)
        assert torch.equal(ours, theirs)


def test_select(backend):
    check_examples(check_select, backend, few=backend == "triton")
