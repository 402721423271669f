"""Mask: constructors with literal expectations, set operations, structure, copies and files."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from copies import pickled, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from maskfuse import Mask
from safetensors.torch import load_file, save_file


def rows(mask: Mask) -> list[str]:
    """A picture of a two-dimensional mask."""
    return ["".join("x" if active else "." for active in row) for row in mask.dense().tolist()]


def test_bits_are_packed_least_significant_first():
    dense = torch.zeros(2, 40, dtype=torch.bool)
    dense[0, [0, 1, 31, 32]] = True
    dense[1, 39] = True
    assert Mask.from_dense(dense).bits.tolist() == [[-(2**31) + 3, 1], [0, 1 << 7]]


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=4), last=st.integers(0, 70), seed=st.integers(0, 99))
def test_dense_and_back(shape, last, seed):
    dense = torch.rand(*shape, last, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask = Mask.from_dense(dense)
    assert mask.shape == dense.shape and mask.numel == dense.numel()
    assert torch.equal(mask.dense(), dense)
    assert mask.active == int(dense.sum())
    assert torch.equal((~mask).dense(), ~dense)
    assert mask.nbytes == mask.bits.numel() * 4
    assert Mask.from_bits(mask.bits, mask.shape) == mask


def test_dense_of_a_strided_tensor():
    dense = torch.rand(9, 40) < 0.5
    assert torch.equal(Mask.from_dense(dense.T).dense(), dense.T)
    assert torch.equal(Mask.from_dense(dense[::2, ::3]).dense(), dense[::2, ::3])


def test_threshold():
    t = torch.tensor([[0.5, -2.0, 1.0], [float("nan"), -1.0, 3.0]])
    assert rows(Mask.threshold(t, 1.0)) == [".x.", "..x"]
    assert rows(Mask.threshold(torch.tensor([[-128, 3]], dtype=torch.int8), 5)) == ["x."]  # abs(-128) is -128


def test_topk_counts_exactly_and_breaks_ties_by_index():
    assert rows(Mask.topk(torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 0.0]]), 0.5)) == ["x..", "xx."]
    assert rows(Mask.topk(torch.ones(2, 3), 0.5)) == ["xxx", "..."]
    assert rows(Mask.topk(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), 0.5)) == ["xx.."]
    assert rows(Mask.topk(torch.tensor([[-1.0, -2.0]]), 0.5)) == ["x."]
    for density in (0.0, 0.013, 0.5, 1.0):
        for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.int64):
            scores = (torch.randn(30, 41) * 5).to(dtype)  # bfloat16 and integers have many ties
            mask = Mask.topk(scores, density)
            assert mask.active == round(density * scores.numel())
            if 0 < mask.active < mask.numel:
                assert scores[mask.dense()].min() >= scores[~mask.dense()].max()


def test_random_counts_exactly_and_follows_the_generator():
    one, two, three = (Mask.random((20, 33), 0.3, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one == two and one != three
    assert one.active == round(0.3 * 660)
    assert Mask.random((20, 33), 0.3) != Mask.random((20, 33), 0.3)
    rate = torch.stack([Mask.random((4, 50), 0.25).dense().float() for _ in range(400)]).mean(0)
    assert (rate - 0.25).abs().max() < 0.12  # five standard deviations: no position is favoured


def test_n_m():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    assert rows(Mask.n_m(scores, 2, 4)) == [".xx.xx.."]
    mask = Mask.n_m(torch.randn(16, 64), 2, 4)
    assert (mask.dense().reshape(16, 16, 4).sum(-1) == 2).all()
    assert (mask.structure, mask.n_of_m) == ("n:m", (2, 4))
    conv = Mask.n_m(torch.randn(8, 16, 3, 3), 1, 4)
    assert (conv.dense().reshape(8, 4, 4, 3, 3).sum(2) == 1).all()
    assert (conv.structure, conv.n_of_m) == ("n:m", (1, 4))
    one = Mask.n_m(torch.randn(1, 8, 3, 3), 2, 4)
    assert (one.structure, one.n_of_m, one.block) == ("n:m", (2, 4), None)


def test_blocks():
    active = torch.tensor([[True, False], [False, True]])
    assert rows(Mask.blocks(active, (1, 2))) == ["xx..", "..xx"]
    assert rows(Mask.blocks(active, (2, 2), shape=(3, 3))) == ["xx.", "xx.", "..x"]
    mask = Mask.blocks(torch.rand(6, 9) < 0.5, (16, 8), shape=(90, 70))
    assert (mask.structure, mask.block) == ("blocks", (16, 8))


def test_channels():
    out, inp = torch.tensor([True, False]), torch.tensor([0, 2])
    assert rows(Mask.channels((2, 3), out=out, inp=inp)) == ["x.x", "..."]
    assert rows(Mask.channels((2, 3), inp=torch.tensor([1]))) == [".x.", ".x."]
    conv = Mask.channels((4, 6, 3, 3), out=torch.tensor([0, 3]), inp=torch.tensor([1, 2, 5]))
    assert conv.structure == "channels" and conv.active == 2 * 3 * 9
    assert conv.dense()[0, 1].all() and not conv.dense()[1].any()


def test_structure_is_found_from_the_bits():
    assert Mask.full((3, 40)).structure == "full"
    assert Mask.full((3, 40), active=False).structure == "empty"
    assert Mask.random((30, 40), 0.5).structure == "unstructured"
    assert Mask.from_dense(Mask.channels((8, 40), out=torch.arange(4)).dense()).structure == "channels"
    assert Mask.random((30, 40), 1.0) == Mask.full((30, 40))


def test_set_operations():
    a, b = torch.rand(5, 70) < 0.5, torch.rand(5, 70) < 0.5
    one, two = Mask.from_dense(a), Mask.from_dense(b)
    assert torch.equal((one & two).dense(), a & b)
    assert torch.equal((one | two).dense(), a | b)
    assert ~~one == one and one & ~one == Mask.full((5, 70), active=False) and one | ~one == Mask.full((5, 70))
    assert one != two and one == Mask.from_dense(a) and hash(one) == hash(Mask.from_dense(a))
    assert one != a  # a tensor is no mask
    with pytest.raises(ValueError, match=r"\[5, 70\].*\[70, 5\]"):
        one & Mask.full((70, 5))
    with pytest.raises(TypeError):
        one & a


def test_counts():
    mask = Mask.random((10, 10), 0.25)
    assert (mask.active, mask.numel, mask.density, mask.sparsity) == (25, 100, 0.25, 0.75)
    assert Mask.full((0, 4)).density == 1.0
    assert "25 of 100" in repr(mask)


def test_immutable():
    mask = Mask.random((4, 4), 0.5)
    with pytest.raises(AttributeError, match="immutable"):
        mask.bits = torch.zeros(4, 1, dtype=torch.int32)
    with pytest.raises(AttributeError, match="immutable"):
        mask.extra = 1
    with pytest.raises(AttributeError, match="immutable"):
        del mask.bits
    bits = mask.bits.clone()
    same = Mask.from_bits(bits, (4, 4))
    bits.zero_()
    assert same == mask


def test_copies():
    mask = Mask.random((4, 40), 0.5)
    assert copy.deepcopy(mask) is mask and copy.copy(mask) is mask
    assert pickled(mask) == mask
    assert mask.to("cpu") is mask
    assert through_a_file({"mask": mask}, weights_only=True)["mask"] == mask


def test_a_pickle_with_bits_past_the_end_is_refused():
    mask = Mask.full((2, 3))
    mask.bits.fill_(-1)
    with pytest.raises(ValueError, match="past the last column"):
        pickled(mask)
    x, w = torch.randn(4, 3), torch.randn(2, 3)  # and what uses it stays inside its matrix
    torch.testing.assert_close(maskfuse.masked_linear(x, w, mask), x @ w.T)


def test_made_in_inference_mode():
    layer = maskfuse.nn.MaskedLinear(40, 5)
    with torch.inference_mode():
        layer.set_mask(Mask.topk(layer.weight.abs(), 0.5))
    layer(torch.randn(2, 40)).sum().backward()
    state = layer.state_dict()
    with torch.inference_mode():
        layer.load_state_dict(state)
    layer(torch.randn(2, 40)).sum().backward()


def test_made_under_another_default_device():
    with torch.device("meta"):
        index = torch.arange(2, device="cpu")
        for mask in (
            Mask.full((3, 4), active=False),
            Mask.full((3, 4)),
            Mask.random((3, 4), 0.5, torch.Generator()),
            Mask.channels((3, 4), inp=index),
            Mask.channels((3, 4), out=index),
            Mask.topk(torch.rand(3, 4, device="cpu"), 0.5),
            Mask.n_m(torch.rand(3, 4, device="cpu"), 2, 4),
            ~Mask.full((3, 4)),
        ):
            assert mask.device.type == "cpu" and mask.active >= 0


def test_any_byte_but_zero_is_true():
    dense = torch.randint(0, 4, (5, 77), dtype=torch.uint8).view(torch.bool)
    assert torch.equal(Mask.from_dense(dense).dense(), dense.to(torch.uint8) != 0)


def test_safetensors(tmp_path):
    mask = Mask.random((4, 40), 0.5)
    save_file({"mask": mask.bits}, tmp_path / "m.safetensors")
    assert Mask.from_bits(load_file(tmp_path / "m.safetensors")["mask"], (4, 40)) == mask
    layer = maskfuse.nn.MaskedLinear(40, 4, mask=mask)
    save_file(layer.state_dict(), tmp_path / "l.safetensors")
    twin = maskfuse.nn.MaskedLinear(40, 4)
    twin.load_state_dict(load_file(tmp_path / "l.safetensors"))
    assert twin.mask == mask and torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mask.from_dense(torch.rand(3, 4)), TypeError, r"t must be a bool tensor, got float32 tensor \[3, 4\]"),
        (lambda: Mask.from_dense([[True]]), TypeError, "t must be a bool tensor, got list"),
        (lambda: Mask.from_dense(torch.tensor(True)), ValueError, "t must have at least one dimension"),
        (lambda: Mask.topk(torch.rand(3, 4), 1.5), ValueError, r"density must be in 0..1, got 1.5"),
        (lambda: Mask.topk(torch.rand(3, 4), float("nan")), ValueError, "density"),
        (
            lambda: Mask.topk(torch.full((3, 4), float("nan")), 0.5),
            ValueError,
            r"scores must not contain NaN.*\[3, 4\]",
        ),
        (lambda: Mask.topk(torch.rand(3, 4) < 1, 0.5), TypeError, "scores must be a tensor of real numbers"),
        (lambda: Mask.random((3, 4), -0.1), ValueError, "density must be in 0..1, got -0.1"),
        (lambda: Mask.random((), 0.5), ValueError, "shape must have at least one dimension"),
        (lambda: Mask.random((3, -4), 0.5), ValueError, r"shape must not be negative, got \[3, -4\]"),
        (lambda: Mask.n_m(torch.full((3, 4), float("nan")), 2, 4), ValueError, "scores must not contain NaN"),
        (lambda: Mask.random(5, 0.5), TypeError, "shape must be a sequence of sizes, got 5"),
        (lambda: Mask.blocks(torch.rand(2, 2) < 1, 3), TypeError, r"block must be \(rows, columns\), got 3"),
        (lambda: Mask.n_m(torch.rand(3, 6), 2, 4), ValueError, r"m=4 must divide.*\[3, 6\]"),
        (lambda: Mask.n_m(torch.rand(3, 8), 5, 4), ValueError, "n=5, m=4"),
        (lambda: Mask.n_m(torch.rand(8), 2, 4), ValueError, r"\[out, in, ...\], got \[8\]"),
        (
            lambda: Mask.blocks(torch.rand(2, 2), (2, 2)),
            TypeError,
            r"active must be a bool tensor.*float32 tensor \[2, 2\]",
        ),
        (lambda: Mask.blocks(torch.rand(2, 2) < 1, (0, 2)), ValueError, r"block must be positive, got \(0, 2\)"),
        (
            lambda: Mask.blocks(torch.rand(2, 2) < 1, (2, 2), (8, 8)),
            ValueError,
            r"active must have shape \[4, 4\].*got \[2, 2\]",
        ),
        (lambda: Mask.channels((3, 4), out=torch.rand(3)), TypeError, r"out must be a bool or integer tensor.*float32"),
        (
            lambda: Mask.channels((3, 4), out=torch.ones(4, dtype=torch.bool)),
            ValueError,
            "out must have length 3, got 4",
        ),
        (lambda: Mask.channels((3, 4), inp=torch.tensor([4])), IndexError, r"inp has an index outside 0..3"),
        (lambda: Mask.channels((3, 4), inp=torch.tensor([-1])), IndexError, r"inp has an index outside 0..3"),
        (lambda: Mask.channels((3,)), ValueError, r"shape must be \[out, in, ...\], got \[3\]"),
        (lambda: Mask.from_bits(torch.zeros(3, 1), (3, 4)), TypeError, "bits must be an int32 tensor, got float32"),
        (
            lambda: Mask.from_bits(torch.zeros(3, 2, dtype=torch.int32), (3, 4)),
            ValueError,
            r"bits must have shape \[3, 1\]",
        ),
        (lambda: Mask.from_bits(torch.full((3, 1), 16, dtype=torch.int32), (3, 4)), ValueError, "past the last column"),
        (lambda: Mask.threshold([1.0], 0.5), TypeError, "t must be a tensor of real numbers, got list"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("shape", [(30, 30), (80, 80), (64, 64, 3, 3)], ids=str)
def test_looking_at_a_mask_changes_no_result(shape):
    """Which product a full mask runs is known from the first call on, whether or not somebody asked what it is."""
    w, x = torch.randn(shape), torch.randn(2, 64, 9, 9) if len(shape) == 4 else torch.randn(300, shape[1])
    op = maskfuse.masked_conv2d if len(shape) == 4 else maskfuse.masked_linear
    mask = Mask.full(shape)
    first = op(x, w, mask)
    assert torch.equal(op(x, w, mask), first)
    assert mask.structure == "full" and repr(mask)
    assert torch.equal(op(x, w, mask), first)
