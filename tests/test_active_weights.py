"""expand_active and collect_active: values, derivatives, torch's checks, bad input."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from conftest import DTYPES, LEVELS
from maskfuse import Mask, functional, ops, reference
from maskfuse.functional import collect_active, expand_active
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.library import opcheck

SHAPES = [(5, 37), (1, 32), (64, 130), (6, 3, 3, 2), (0, 4), (4, 0), (9,)]


@pytest.fixture(params=[*LEVELS, "reference"])
def implementation(request):
    """The functions on each CPU level, and their definition."""
    if request.param == "reference":
        yield reference
        return
    before = torch.ops.maskfuse.set_cpu_level(request.param)
    yield functional
    torch.ops.maskfuse.set_cpu_level(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_values(implementation, dtype, density):
    expand_active, collect_active = implementation.expand_active, implementation.collect_active
    for shape in SHAPES:
        mask = Mask.random(shape, density)
        dense = mask.dense()
        weight = torch.randn(shape).to(dtype)
        weight.reshape(-1)[:1] = -0.0  # bits are kept
        values = collect_active(weight, mask)
        assert values.dtype == dtype and torch.equal(values, weight[dense])
        assert torch.equal(values.signbit(), weight[dense].signbit())
        back = expand_active(values, mask)
        assert back.dtype == dtype and back.is_contiguous()
        assert torch.equal(back, torch.where(dense, weight, 0)) and not back[~dense].signbit().any()


def test_any_strides(implementation):
    expand_active, collect_active = implementation.expand_active, implementation.collect_active
    mask = Mask.random((6, 4, 3, 2), 0.5)
    weight = torch.randn(6, 4, 3, 2).to(memory_format=torch.channels_last)
    assert torch.equal(collect_active(weight, mask), weight[mask.dense()])
    flat = Mask.random((6, 8), 0.5)
    values = torch.randn(2 * flat.active)[::2]
    assert torch.equal(expand_active(values, flat)[flat.dense()], values)


def test_derivatives(implementation):
    expand_active, collect_active = implementation.expand_active, implementation.collect_active
    mask = Mask.random((5, 37), 0.3)
    values = torch.randn(mask.active, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 37, dtype=torch.float64, requires_grad=True)
    for function, t in ((expand_active, values), (collect_active, weight)):
        assert gradcheck(lambda t: function(t, mask), (t,), check_forward_ad=True)  # noqa: B023
        assert gradgradcheck(lambda t: function(t, mask) * function(t, mask), (t,))  # noqa: B023
    g = torch.randn(5, 37, dtype=torch.float64)
    (got,) = torch.autograd.grad((expand_active(values, mask) * g).sum(), values)
    assert torch.equal(got, g[mask.dense()])
    assert torch.equal(grad(lambda v: (expand_active(v, mask) * g).sum())(values), got)
    several = torch.randn(3, mask.active, dtype=torch.float64)
    together = vmap(lambda v: expand_active(v, mask))(several)
    assert torch.equal(together, torch.stack([expand_active(v, mask) for v in several]))
    assert torch.equal(vmap(lambda w: collect_active(w, mask))(together), several)


def test_opcheck():
    for mask in (Mask.random((5, 37), 0.3), Mask.random((4, 3, 2, 2), 0.5)):
        values = torch.randn(mask.active, requires_grad=True)
        opcheck(torch.ops.maskfuse.expand_active.default, (values, mask.bits, list(mask.shape)))
        weight = torch.randn(mask.shape, requires_grad=True)
        opcheck(torch.ops.maskfuse.collect_active.default, (weight, mask.bits, mask.active))


@pytest.mark.parametrize("name", ["cuda", "reference"])
def test_whichever_backend_is_asked_for(name):
    """As masks are: layers are made on the host first."""
    mask = Mask.random((5, 37), 0.3)
    with maskfuse.use_backend(name):
        layer = maskfuse.nn.MaskedLinear(37, 5, mask=mask).to_compact()
        assert torch.equal(layer.values, layer.weight[mask.dense()])


def test_traced():
    mask = Mask.random((5, 37), 0.3)
    values = torch.randn(mask.active)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def round_trip(values, bits):
        return ops.collect_active(ops.expand_active(values, bits, [5, 37]) * 2, bits, values.shape[0])

    assert torch.equal(round_trip(values, mask.bits), values * 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, v, w: expand_active(v[1:], m), ValueError, r"values must have shape \[20\].*\[19\]"),
        (lambda m, v, w: expand_active(v[None], m), ValueError, r"values must have shape \[20\]"),
        (lambda m, v, w: expand_active(v.int(), m), TypeError, "values must be float32"),
        (lambda m, v, w: expand_active(v, m.dense()), TypeError, "mask must be a maskfuse.Mask"),
        (lambda m, v, w: expand_active([1.0], m), TypeError, "values must be a tensor, got list"),
        (lambda m, v, w: collect_active(w.T, m), ValueError, r"\[out, in\]"),
        (lambda m, v, w: collect_active(w, m.dense()), TypeError, "mask must be a maskfuse.Mask"),
        (lambda m, v, w: collect_active(w.bool(), m), TypeError, "weight must be float32"),
    ],
)
def test_bad_input(call, error, message):
    mask = Mask.random((4, 10), 0.5)
    with pytest.raises(error, match=message):
        call(mask, torch.randn(20), torch.randn(4, 10))
