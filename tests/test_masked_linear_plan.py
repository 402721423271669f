"""Masks of every structure on every kernel, and the plans that kernels walk."""

from __future__ import annotations

import contextlib
import copy
import threading

import maskfuse
import pytest
import torch
import torch.utils.flop_counter
from conftest import few, one_of
from copies import pickled
from maskfuse import Mask, masked_conv2d, masked_linear, reference
from maskfuse._mask import plans
from maskfuse.functional import _check
from maskfuse.nn import MaskedConv2d, MaskedLinear
from test_masked_linear import check, forward_backward
from torch.nn import functional as F

OUT, IN = 150, 300
OPS = torch.ops.maskfuse


def rows_of(*kinds: torch.Tensor) -> Mask:
    return Mask.from_dense(torch.stack([kinds[i % len(kinds)] for i in range(OUT)]))


def one_a_row() -> Mask:
    return Mask.from_dense(torch.nn.functional.one_hot(torch.randint(IN, (OUT,)), IN).bool())


def chunk_borders() -> Mask:
    dense = torch.zeros(OUT, IN, dtype=torch.bool)
    dense[:, [0, 31, 32, 63, 64, 127, 128, 255, 256, IN - 1]] = True
    return Mask.from_dense(dense & (torch.rand(OUT, IN) < 0.7))


FULL, NONE = torch.ones(IN, dtype=torch.bool), torch.zeros(IN, dtype=torch.bool)
MASKS = {
    "sparse": lambda: Mask.random((OUT, IN), 0.05),
    "half": lambda: Mask.random((OUT, IN), 0.5),
    "dense": lambda: Mask.random((OUT, IN), 0.8),
    "empty": lambda: Mask.full((OUT, IN), active=False),
    "full": lambda: Mask.full((OUT, IN)),
    "channels": lambda: Mask.channels((OUT, IN), torch.rand(OUT) < 0.5, torch.rand(IN) < 0.5),
    "blocks": lambda: Mask.blocks(torch.rand(10, 19) < 0.4, (16, 16), (OUT, IN)),
    "n:m": lambda: Mask.n_m(torch.rand(OUT, IN), 1, 4),
    "one weight a row": one_a_row,
    "dense rows among empty ones": lambda: rows_of(FULL, NONE, NONE),
    "dense, sparse and dead rows": lambda: rows_of(FULL, torch.rand(IN) < 0.1, NONE, torch.rand(IN) < 0.6),
    "chunk borders": chunk_borders,
}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_structures(request, backend, make, dtype):
    one_of(request, backend, 4)
    mask = make()
    for batch in few(backend, 20, 3, 150):
        x, w, b = (torch.randn(shape).to(dtype) for shape in ((batch, IN), (OUT, IN), (OUT,)))
        check(x, w, mask, b)


@contextlib.contextmanager
def preferring(kernel: str):
    OPS.prefer_masked_linear_kernel(kernel)
    try:
        yield
    finally:
        OPS.prefer_masked_linear_kernel("")


def candidates(mask: Mask, batch: int, dtype: torch.dtype) -> set[str]:
    texts = [
        OPS.masked_linear_candidates(direction, batch, mask.bits, mask.shape[1], mask.plan, dtype)
        for direction in ("forward", "input_grad", "weight_grad")
    ]
    return {line.split()[0] for text in texts for line in text.splitlines()}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("batch", [12, 20, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_candidate_gives_the_same(make, batch, dtype):
    mask = make()
    x, w, b = (torch.randn(shape).to(dtype) for shape in ((batch, IN), (OUT, IN), (OUT,)))
    grad = torch.randn(batch, OUT).to(dtype)
    want = forward_backward(reference.masked_linear, *(t.double() for t in (x, w)), mask, b.double(), grad.double())
    tolerance = 1e-4 if dtype == torch.float32 else 4e-2
    for name in candidates(mask, batch, dtype):
        with preferring(name):
            for got, expected in zip(forward_backward(masked_linear, x, w, mask, b, grad), want, strict=True):
                torch.testing.assert_close(got.double(), expected, atol=10 * tolerance, rtol=tolerance, msg=name)


# Panels: rows of the weight for the forward pass, columns for the other; compact ones and masked copies.
@pytest.mark.parametrize("kind", ["random", "channels", "full but one"])
def test_the_library_takes_a_large_weight_in_panels(kind):
    out, inp, batch = 2200, 2100, 64
    mask = {
        "random": lambda: Mask.random((out, inp), 0.5),
        "channels": lambda: Mask.channels((out, inp), torch.rand(out) < 0.9, torch.rand(inp) < 0.9),
        "full but one": lambda: Mask.from_dense(torch.arange(out * inp).view(out, inp) != 5),
    }[kind]()
    if "library" not in candidates(mask, batch, torch.float32):
        pytest.skip("no library product on this level")
    x, w, b, grad = torch.randn(batch, inp), torch.randn(out, inp), torch.randn(out), torch.randn(batch, out)
    w[~mask.dense()] = torch.nan
    want = forward_backward(reference.masked_linear, x, w, mask, b, grad)
    with preferring("library"):
        for got, expected in zip(forward_backward(masked_linear, x, w, mask, b, grad), want, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("call", [masked_linear, maskfuse.gated_linear], ids=["soft", "gate"])
def test_the_library_with_real_valued_masks(call):
    x, w, b, grad = torch.randn(70, IN), torch.randn(OUT, IN), torch.randn(OUT), torch.randn(70, OUT)
    factor = torch.randn(OUT, IN, requires_grad=True)
    with preferring("tiled"):
        want = [*forward_backward(call, x, w, factor, b, grad), factor.grad]
    factor.grad = None
    with preferring("library"):
        got = [*forward_backward(call, x, w, factor, b, grad), factor.grad]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_the_library_inside_whatever_torch_does_around_a_call():
    mask = Mask.random((OUT, IN), 0.5)
    layer = MaskedLinear(IN, OUT, mask=mask)
    x = torch.randn(80, IN, requires_grad=True)
    want = layer(x).detach()
    with preferring("library"):
        for got in (layer(x), torch.compile(layer, fullgraph=True)(x), layer(x.view(4, 20, IN)).view(80, OUT)):
            torch.testing.assert_close(got, want)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), want)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.utils.flop_counter.FlopCounterMode(display=False):
            torch.testing.assert_close(layer(x), want)
        wide = torch.randn(80, 2 * IN)[:, ::2]
        torch.testing.assert_close(layer(wide), layer(wide.contiguous()))


@pytest.mark.parametrize("kernel", ["", "library"])
def test_the_same_bits_from_run_to_run(kernel):
    mask = Mask.random((OUT, IN), 0.2)
    x, w, b, grad = torch.randn(200, IN), torch.randn(OUT, IN), torch.randn(OUT), torch.randn(200, OUT)
    with preferring(kernel):
        same_bits(mask, x, w, b, grad)


def same_bits(mask, x, w, b, grad):
    first = forward_backward(masked_linear, x, w, mask, b, grad)
    again = Mask.from_dense(mask.dense())  # planned anew
    for other in (mask, again):
        for one, two in zip(first, forward_backward(masked_linear, x, w, other, b, grad), strict=True):
            assert torch.equal(one, two)


def test_more_than_two_to_the_sixteen_weights_in_a_row():
    columns = 70_000
    dense = torch.zeros(9, columns, dtype=torch.bool)
    dense[0], dense[4, ::3], dense[7, -1] = True, True, True
    mask = Mask.from_dense(dense)
    x, w = torch.randn(17, columns), torch.randn(9, columns)
    grad = torch.randn(17, 9)
    got = forward_backward(masked_linear, x, w, mask, torch.zeros(9), grad)
    want = forward_backward(
        reference.masked_linear, x.double(), w.double(), mask, torch.zeros(9).double(), grad.double()
    )
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-3, rtol=1e-4)
    layer = MaskedLinear(columns, 9, bias=False, mask=mask).eval()
    for batch in (1, 8):  # columns that need more than 16 bits are placed by the mask's bits
        y = layer.unpack()(x[:batch])
        torch.testing.assert_close(layer.pack()(x[:batch]), y, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_a_plan_is_small(density):
    mask = Mask.random((1024, 1024), density)
    assert sum(t.numel() for t in mask.plan) <= 4 * mask.active
    assert mask.nbytes == mask.bits.numel() * 4 + sum(t.numel() for t in mask.plan)


def test_who_has_a_plan():
    assert Mask.full((OUT, IN)).plan == []  # every weight active
    assert Mask.random((16, 16), 0.5).plan == []  # too small to gain
    assert Mask.random((64, 80, 3), 0.5).plan == []  # neither a linear layer's nor an image's
    mask = Mask.random((OUT, IN), 0.5)
    assert len(mask.plan) == 2 and mask.plan is mask.plan
    assert copy.deepcopy(mask).plan is mask.plan
    with torch.inference_mode():
        other = Mask.random((OUT, IN), 0.5)
        assert not any(t.is_inference() for t in other.plan)
    restored = pickled(mask)
    assert restored._plan is None and all(map(torch.equal, restored.plan, mask.plan))


def test_layers_share_a_plan_and_make_it_early():
    mask = Mask.random((OUT, IN), 0.5)
    layers = [MaskedLinear(IN, OUT, mask=mask) for _ in range(2)]
    assert mask._plan is not None
    assert layers[0].mask.plan is layers[1].mask.plan


@pytest.mark.parametrize("shape", [(64, 80), (64, 16, 3, 3)], ids=["linear", "conv"])
def test_a_call_makes_no_plan_where_that_waits_for_the_device(monkeypatch, shape):
    """A tensor as a mask, as on CUDA: its bits are packed and not looked at. A layer plans all the same."""
    made = []
    monkeypatch.setattr(_check, "plan_waits", lambda device: True)
    monkeypatch.setattr(plans, "make_plan", lambda mask: made.append(mask) or [])
    monkeypatch.setattr(Mask, "_found", lambda self: pytest.fail("the bits were looked at"))
    conv = len(shape) == 4
    layer, op = (MaskedConv2d(16, 64, 3), masked_conv2d) if conv else (MaskedLinear(80, 64), masked_linear)
    made.clear()
    x, w, dense = torch.randn(3, *shape[1:]), torch.randn(shape), torch.rand(shape) < 0.5
    product = F.conv2d if conv else F.linear
    torch.testing.assert_close(op(x, w, dense), product(x, w * dense))
    assert not made
    layer.set_mask(dense)
    assert made == [layer.mask]


def test_on_which_devices_a_plan_waits():
    assert plans.plan_waits(torch.device("cuda", 1))
    assert not any(plans.plan_waits(torch.device(name)) for name in ("cpu", "meta"))


def plans_of_many_threads(mask: Mask) -> list[list[torch.Tensor]]:
    found: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: found.append(mask.plan)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_plan_asked_for_by_many_threads_is_made_once():
    for _ in range(5):
        assert len({id(plan) for plan in plans_of_many_threads(Mask.random((OUT, IN), 0.3))}) == 1


def test_explain_shows_estimates_and_runners_up():
    explanation = maskfuse.explain(Mask.random((1024, 1024), 0.1), batch=12)
    if torch.ops.maskfuse.cpu_level() == "scalar":
        pytest.skip("the scalar level has one kernel")
    assert set(explanation.estimates["forward"]) == {"row_dot", "accumulate"}
    assert set(explanation.estimates["weight_grad"]) == {"tiled", "sampled"}
    for times in explanation.estimates.values():
        assert list(times.values()) == sorted(times.values())
    assert "estimated" in str(explanation) and "not " in str(explanation)


@pytest.mark.parametrize("inp", [96, 100, 129])
@pytest.mark.parametrize("structure", ["random", "channels"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_lies_beside_a_row_stays_there(inp, structure, dtype):
    """torch's half-type products read past a row's end and multiply what they find by zero."""
    out, batch = 200, 256
    mask = Mask.random((out, inp), 0.5)
    if structure == "channels":
        mask = Mask.channels((out, inp), torch.arange(out) % 3 > 0, torch.arange(inp) % 3 > 0)
    wide = torch.full((batch, 2 * inp), torch.nan, dtype=dtype)
    grads = torch.full((batch, 2 * out), torch.nan, dtype=dtype)
    wide[:, :inp], grads[:, :out] = torch.randn(batch, inp), torch.randn(batch, out)
    w = torch.randn(out, inp).to(dtype).masked_fill(~mask.dense(), torch.nan)
    for kernel in ("", "library"):
        with preferring(kernel):
            x = wide[:, :inp].requires_grad_()
            y = masked_linear(x, w.requires_grad_(), mask)
            dx, dw = torch.autograd.grad(y, (x, w), grads[:, :out])
            assert all(t.isfinite().all() for t in (y, dx, dw)), kernel
            poisoned = wide[:, :inp].clone()
            poisoned[5] = torch.nan
            bad = (~masked_linear(poisoned, w.detach(), mask).isfinite()).any(1)
            assert bad.nonzero().flatten().tolist() == [5], kernel


def test_a_plan_with_a_broken_header_is_refused():
    mask = Mask.random((OUT, IN), 0.5)
    x, w = torch.randn(3, IN), torch.randn(OUT, IN)
    for word in range(1, 24):  # 32-bit words of the header behind its mark
        broken = mask.plan[0].clone()
        broken.view(-1)[: 4 * 24].view(torch.int32)[word] = -32
        with pytest.raises(RuntimeError, match="not the plan of a mask"):
            OPS.masked_linear(x, w, mask.bits, [broken, mask.plan[1]], None)
