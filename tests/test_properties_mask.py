"""Mask: algebra, constructors and round trips on drawn shapes and structures; mask_gradient; active weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import DTYPES
from drawn import check_examples, check_masked_gradient, drawn_mask, laid_out
from hypothesis import strategies as st
from maskfuse import Mask, mask_gradient
from maskfuse._mask_coding import decode, encode
from maskfuse.functional import collect_active, expand_active

SHAPES = st.one_of(
    st.tuples(st.integers(0, 90)),
    st.tuples(st.integers(0, 20), st.sampled_from([0, 1, 31, 32, 33, 64, 97, 130])),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.integers(1, 4)),
)


def any_mask(draw, shape=None):
    shape = draw(SHAPES) if shape is None else shape
    return drawn_mask(draw, shape) if len(shape) > 1 else Mask.from_dense(torch.rand(shape) < 0.5)


def check_algebra(draw):
    a = any_mask(draw)
    b, c = any_mask(draw, a.shape), any_mask(draw, a.shape)
    dense, other = a.dense(), b.dense()
    assert torch.equal((a & b).dense(), dense & other) and torch.equal((a | b).dense(), dense | other)
    assert torch.equal((~a).dense(), ~dense)
    assert ~(a & b) == ~a | ~b and ~(a | b) == ~a & ~b and ~~a == a
    assert a & (b | c) == (a & b) | (a & c) and a | (a & b) == a
    assert a & ~a == Mask.full(a.shape, active=False) and a | ~a == Mask.full(a.shape)
    assert (a & b).active + (a | b).active == a.active + b.active and a.active + (~a).active == a.numel
    assert (a == b) == torch.equal(dense, other) and hash(a) == hash(Mask.from_dense(dense))
    assert a.active == int(dense.sum())


def test_algebra():
    check_examples(check_algebra)


def check_round_trips(draw):
    mask = any_mask(draw)
    assert Mask.from_dense(laid_out(draw, mask.dense())).shape == mask.shape
    same = [
        Mask.from_dense(mask.dense()),
        Mask.from_bits(mask.bits, mask.shape),
        Mask.from_bits(laid_out(draw, mask.bits) if mask.shape[0] < 2 else mask.bits.mT.contiguous().mT, mask.shape),
        pickle.loads(pickle.dumps(mask)),
        copy.deepcopy(mask),
        decode(*encode(mask), mask.shape),
    ]
    assert all(other == mask and other.structure == mask.structure for other in same)
    safetensors = pytest.importorskip("safetensors.torch")
    loaded = safetensors.load(safetensors.save({"mask": mask.bits}))["mask"]
    assert Mask.from_bits(loaded, mask.shape) == mask


def test_round_trips():
    check_examples(check_round_trips)


def check_topk(draw):
    """Exact counts, the largest scores, and ties by index: by sorting."""
    shape = draw(SHAPES)
    scores = torch.randint(-3, 4, shape).to(draw(st.sampled_from([*DTYPES, torch.int8, torch.int64])))
    density = draw(st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1)))
    mask = Mask.topk(laid_out(draw, scores) if draw(st.booleans()) and len(shape) == 1 else scores, density)
    count = round(density * scores.numel())
    assert mask.active == count == Mask.random(shape, density).active
    flat = scores.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    want = torch.zeros(scores.numel(), dtype=torch.bool)
    want[order[:count]] = True
    if len(shape) > 1:
        assert torch.equal(mask.dense().flatten(), want)


def test_topk():
    check_examples(check_topk)


def check_n_m(draw):
    m = draw(st.sampled_from([1, 2, 4, 5, 8]))
    n = draw(st.integers(0, m))
    shape = (draw(st.integers(1, 9)), m * draw(st.integers(1, 9)), *draw(st.sampled_from([(), (1, 1), (3, 2)])))
    scores = torch.randn(shape)
    groups = Mask.n_m(scores, n, m).dense().movedim(1, -1).unflatten(-1, (-1, m))
    assert (groups.sum(-1) == n).all()
    if 0 < n < m:
        of = scores.movedim(1, -1).unflatten(-1, (-1, m))
        least = torch.where(groups, of, torch.inf).amin(-1)
        assert (least >= torch.where(groups, -torch.inf, of).amax(-1)).all()


def test_n_m():
    check_examples(check_n_m)


def check_blocks(draw):
    block = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 90))
    grid = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) < 0.5
    dense = Mask.blocks(grid, block, shape).dense()
    for r in range(shape[0]):
        want = grid[r // block[0], torch.arange(shape[1]) // block[1]]
        assert torch.equal(dense[r], want)


def test_blocks():
    check_examples(check_blocks)


def check_structure(draw):
    """What is said of the bits holds for each of them."""
    mask = any_mask(draw, (draw(st.integers(1, 40)), draw(st.integers(1, 70))))
    dense = mask.dense()
    if mask.structure in ("empty", "full"):
        assert dense.all() if mask.structure == "full" else not dense.any()
    elif mask.structure == "channels":
        rows, columns = dense.any(1), dense.any(0)
        assert torch.equal(dense, rows[:, None] & columns)
        assert torch.equal(mask.active_channels()[0].long(), rows.nonzero().squeeze(1))
    elif mask.structure == "blocks":
        r, c = mask.block
        corners = dense[::r, ::c].repeat_interleave(r, 0)[: dense.shape[0]].repeat_interleave(c, 1)
        assert torch.equal(dense, corners[:, : dense.shape[1]])
    elif mask.structure == "n:m":
        n, m = mask.n_of_m
        assert (dense.unflatten(1, (-1, m)).sum(-1) == n).all()


def test_structure():
    check_examples(check_structure)


def check_mask_gradient(draw):
    mask = any_mask(draw)
    dtype = draw(st.sampled_from(DTYPES))
    x = laid_out(draw, torch.randn(mask.shape).to(dtype)).detach().requires_grad_()
    y = mask_gradient(x, mask)
    assert torch.equal(y, x)
    grad = laid_out(draw, torch.randn(mask.shape).to(dtype)).masked_fill(~mask.dense(), draw(st.floats(width=16)))
    (got,) = torch.autograd.grad(y, x, grad)
    assert torch.equal(got, torch.where(mask.dense(), grad, torch.zeros((), dtype=dtype)))
    check_masked_gradient(got, mask)


def test_mask_gradient():
    check_examples(check_mask_gradient)


def check_active_weights(draw):
    """Collecting and expanding are inverse, bit for bit, and each other's derivative."""
    mask = any_mask(draw)
    dtype = draw(st.sampled_from(DTYPES))
    dense = mask.dense()
    weight = laid_out(draw, torch.randn(mask.shape).to(dtype)).masked_fill(~dense, float("nan"))
    values = collect_active(weight, mask).requires_grad_()
    assert torch.equal(values, weight[dense])
    full = expand_active(values, mask)
    assert torch.equal(full, torch.where(dense, weight, torch.zeros((), dtype=dtype)))
    check_masked_gradient(full.detach(), mask)
    grad = laid_out(draw, torch.randn(mask.shape).to(dtype))
    (got,) = torch.autograd.grad(full, values, grad)
    assert torch.equal(got, grad[dense])


def test_active_weights():
    check_examples(check_active_weights)
