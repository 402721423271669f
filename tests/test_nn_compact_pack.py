"""Packed compact layers: the bits of packed masked layers, of a weight that is not there."""

from __future__ import annotations

import copy

import maskfuse
import pytest
import torch
from conftest import DTYPES, LEVELS
from maskfuse import Mask
from maskfuse.nn import CompactConv2d, CompactLinear, MaskedLinear
from torch import nn

IN, OUT = 130, 70


def layers(density, dtype=torch.float32):
    masked = MaskedLinear(IN, OUT, dtype=dtype, mask=Mask.random((OUT, IN), density)).eval()
    return masked, masked.to_compact()


@pytest.fixture
def expanded(monkeypatch):
    """The calls that made a weight in full; memory that nothing was written to holds NaN."""
    made = []
    expand = maskfuse.ops.compact_linear
    monkeypatch.setattr(maskfuse.ops, "compact_linear", lambda *args: made.append(args) or expand(*args))
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield made
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.9])
@torch.no_grad()
def test_as_the_packed_masked_layer(level, dtype, density, expanded):
    before = torch.ops.maskfuse.set_cpu_level(level)
    try:
        masked, compact = layers(density, dtype)
        assert maskfuse.pack(nn.Sequential(masked, compact)) and compact.packed_nbytes == masked.packed_nbytes > 0
        for batch in (0, 1, 2, 3, 4, 8, 9, 16, 17, 70, 200):
            x = torch.randn(batch, IN).to(dtype)
            assert torch.equal(compact(x), masked(x)), batch
    finally:
        torch.ops.maskfuse.set_cpu_level(before)


@torch.no_grad()
def test_a_call_of_few_rows_expands_nothing(expanded):
    _, compact = layers(0.1)
    x = torch.randn(4, IN)
    y = compact(x)
    assert len(expanded) == 1
    assert compact.pack() is compact
    torch.testing.assert_close(compact(x), y)
    torch.testing.assert_close(compact(x.expand(2, 4, IN)), y.expand(2, 4, OUT))
    assert len(expanded) == 1


def test_what_drops_the_copy():
    _, compact = layers(0.1)
    x = torch.randn(4, IN)
    for change in (
        lambda: compact.set_mask(Mask.random((OUT, IN), 0.2)),
        lambda: compact.load_state_dict(compact.state_dict()),
        compact.reset_parameters,
        compact.unpack,
        compact.train,
        compact.double,
        compact.float,
    ):
        compact.eval().pack()
        assert compact.packed_nbytes
        change()
        assert not compact.packed_nbytes
    compact.eval().pack()
    assert not copy.deepcopy(compact).packed_nbytes
    with torch.no_grad():
        before = compact(x)
        compact.values.mul_(2)  # noticed
        torch.testing.assert_close(compact(x) - compact.bias, 2 * (before - compact.bias))
    y = compact.pack()(x)
    y.sum().backward()  # with a gradient asked for
    assert compact.values.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(compact(x), compact.unpack()(x))


def test_with_nothing_to_gain():
    for layer in (CompactLinear(IN, OUT), CompactLinear(4, 4, mask=Mask.random((4, 4), 0.5)), CompactConv2d(16, 64, 3)):
        layer.eval().set_mask(layer.mask)
        assert not layer.pack().packed_nbytes
    conv = CompactConv2d(16, 64, 3, mask=Mask.random((64, 16, 3, 3), 0.1)).eval()
    x = torch.randn(1, 16, 5, 5)
    with torch.no_grad():
        y = conv(x)
        assert not conv.pack().packed_nbytes and torch.equal(conv(x), y)


@torch.no_grad()
def test_other_backends_and_compilers():
    masked, compact = layers(0.1)
    x = torch.randn(4, IN)
    want = compact.pack()(x)
    with maskfuse.use_backend("reference"):
        torch.testing.assert_close(compact(x), masked(x))
    compiled = torch.compile(compact, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    torch.testing.assert_close(torch.func.vmap(compact)(x), want)
