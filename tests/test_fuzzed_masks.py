"""Masks from bits, pickles and state dicts that somebody damaged or made: an exception, and nothing half-loaded."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from drawn import check_examples
from hypothesis import strategies as st
from maskfuse import Mask
from maskfuse.nn import CompactConv2d, CompactLinear, MaskedConv2d, MaskedLinear
from torch import nn

WRONG = (ValueError, TypeError, OSError)


def check_bits(draw):
    """Any integers as bits, of any shape: a mask whose bits are these, or refused."""
    shape = draw(st.one_of(st.tuples(), *(st.tuples(*[st.integers(-1, 40)] * n) for n in (1, 2, 3, 4))))
    rows, words = draw(st.integers(0, 12)), draw(st.integers(0, 3))
    dtype = draw(st.sampled_from([torch.int32] * 4 + [torch.int64, torch.float32, torch.bool]))
    bits = torch.randint(-(1 << 31), 1 << 31, (rows, words)).to(dtype)
    if draw(st.booleans()) and len(shape) > 1 and min(shape) >= 0:
        columns = torch.Size(shape[1:]).numel()
        bits = torch.randint(-(1 << 31), 1 << 31, (shape[0], -(-columns // 32))).to(dtype)
    try:
        mask = Mask.from_bits(bits, shape)
    except WRONG:
        return
    assert torch.equal(mask.bits, bits) and mask.shape == shape and mask.active == int(mask.dense().sum())


def test_any_bits():
    check_examples(check_bits)


def check_pickle(draw):
    """Bytes of a pickle changed: loads a mask that is one, or raises; `weights_only`, so that no code runs."""
    mask = Mask.random((draw(st.integers(1, 20)), draw(st.integers(1, 70))), 0.3)
    file = io.BytesIO()
    torch.save({"mask": mask}, file)
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(1, 6))):
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    content = content[: draw(st.sampled_from([len(content), draw(st.integers(0, len(content)))]))]
    try:
        loaded = torch.load(io.BytesIO(bytes(content)), weights_only=True)["mask"]
    except Exception:  # torch's own readers have no list of what they raise
        return
    if isinstance(loaded, Mask):
        rows, columns = loaded.shape
        assert loaded.bits.shape == (rows, -(-columns // 32)) and loaded.dense().shape == loaded.shape
        assert loaded.active == int(loaded.dense().sum())


def test_pickles_of_changed_bytes():
    check_examples(check_pickle)


class Hostile:
    """A pickle of a mask with arguments of its maker's choice."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return Mask.full((1, 1)).__reduce__()[0], self.arguments


BITS = torch.ones(4, 1, dtype=torch.int32)
MADE = {
    "shape of text": (BITS, "ab"),
    "shape of numbers as text": (BITS, ("4", "3")),
    "shape of fractions": (BITS, (4.0, 3.0)),
    "shape of nothing": (BITS, ()),
    "negative": (BITS, (-4, -3)),
    "huge": (BITS, (4, 1 << 62)),
    "larger than any number": (BITS, (4, 1 << 70)),
    "no tensor": ([1, 2], (4, 3)),
    "other dtype": (BITS.float(), (4, 3)),
    "bits past the end": (BITS - 2, (4, 3)),
    "sparse": (BITS.to_sparse(), (4, 3)),
    "one of many": (torch.ones(1, 1, dtype=torch.int32).expand(1 << 40, 1), (1 << 40, 3)),
    "on meta": (BITS.to("meta"), (4, 3)),
}


@pytest.mark.parametrize("what", MADE)
def test_pickles_made_by_somebody(what):
    with pytest.raises(WRONG):
        pickle.loads(pickle.dumps(Hostile(*MADE[what])))


def test_rows_without_columns_take_no_time():
    """A file of a few bytes may say that there are many."""
    mask = Mask.from_bits(torch.empty(1 << 50, 0, dtype=torch.int32), (1 << 50, 0))
    assert mask.structure == "empty" and mask.active == 0 and mask.plan == []
    assert (~mask).numel == 0 and mask.dense().shape == mask.shape == Mask.from_dense(mask.dense()).shape
    assert pickle.loads(pickle.dumps(mask)) == mask


def network():
    model = nn.Sequential(MaskedLinear(40, 9), CompactLinear(9, 33), MaskedConv2d(2, 3, 3), CompactConv2d(3, 4, 2))
    for layer in model:
        layer.set_mask(Mask.random(layer.mask.shape, 0.4))
    return model


def check_state(draw):
    """An entry of bits changed, cut, or of other numbers: refused, with each layer as it was or as it was saved."""
    model, other = network(), network()
    state = model.state_dict()
    key = draw(st.sampled_from([k for k in state if k.endswith("mask_bits")]))
    bits = state[key]
    change = draw(st.sampled_from(["flip", "cut", "dtype", "shape", "past the end", "none", "values"]))
    at = draw(st.integers(0, bits.numel() - 1))
    if change in ("flip", "past the end"):
        bits.view(-1)[at] ^= 1 << draw(st.integers(0, 30)) if change == "flip" else -(1 << 31)
    changed = {"cut": bits[:-1], "dtype": bits.float(), "shape": bits[None], "none": bits.new_empty(0)}
    state[key] = changed.get(change, bits)
    if change == "values":
        kept = key.replace("mask_bits", "values" if key.replace("mask_bits", "values") in state else "weight")
        state[kept] = state[kept].flatten()[1:]
    before = copy.deepcopy(other.state_dict())
    try:
        other.load_state_dict(state)
    except RuntimeError as error:  # as torch's own layers have it
        assert key.split(".")[0] + "." in str(error)
    for name, layer in other.named_children():
        mine = {k: v for k, v in other.state_dict().items() if k.startswith(name + ".")}
        kept = all(torch.equal(v, before[k]) for k, v in mine.items())
        taken = all(v.shape == state[k].shape and torch.equal(v, state[k]) for k, v in mine.items())
        assert kept or taken or (name == key.split(".")[0] and layer.mask.shape == model.get_submodule(name).mask.shape)
        if hasattr(layer, "values"):
            assert layer.values.shape == (layer.mask.active,)


def test_state_dicts():
    check_examples(check_state)
