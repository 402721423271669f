"""Plans and packed weights of changed bytes, given to the ops themselves.

Layers pass plans that mask_plan made: of what stands in front of a plan's lists, sizes and patterns are checked, the
lists are believed. With MASKFUSE_DEBUG=1 all of it is checked; csrc/tests/test_damaged_plan.cpp shows that this is
enough.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from drawn import check_examples, drawn_mask
from hypothesis import strategies as st
from maskfuse import Mask, masked_linear
from maskfuse.nn import MaskedLinear

DEBUG = os.environ.get("MASKFUSE_DEBUG") == "1"
OPS = torch.ops.maskfuse
OUT, IN = 70, 130

in_debug_mode = pytest.mark.skipif(not DEBUG, reason="needs MASKFUSE_DEBUG=1, with which a test here runs this")


@pytest.mark.skipif(DEBUG, reason="runs the others")
def test_in_debug_mode(request):
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-rs"]
    for option in ("--hypothesis-profile", "--hypothesis-seed"):
        value = request.config.getoption(option, None)
        command += [] if value is None else [f"{option}={value}"]
    environment = {**os.environ, "MASKFUSE_DEBUG": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout[-3000:]
    assert "needs MASKFUSE_DEBUG" not in process.stdout


def run(mask, plan, batch):
    """All three passes of a linear layer, and a packed call."""
    x, w, grad = torch.randn(batch, IN), torch.randn(OUT, IN), torch.randn(batch, OUT)
    OPS.masked_linear(x, w, mask.bits, plan, None)
    OPS.masked_linear_input_grad(grad, w, mask.bits, plan[:2])
    OPS.masked_linear_weight_grad(grad, x, mask.bits, plan[:2])


def changed(draw, t):
    """A copy with some bytes changed, or another length."""
    data = t.flatten().view(torch.uint8).clone()
    for _ in range(draw(st.integers(1, 4))):
        if data.numel():
            end = draw(st.sampled_from([min(128, data.numel()), data.numel()]))
            data[draw(st.integers(0, end - 1))] ^= draw(st.integers(1, 255))
    if draw(st.integers(0, 5)) == 0:
        data = data[: draw(st.integers(0, data.numel()))]
    return data[: data.numel() // t.element_size() * t.element_size()].view(t.dtype)


def check_plan(draw):
    mask = drawn_mask(draw, (OUT, IN))
    plan = list(mask.plan)
    if not plan:
        return
    weight = torch.randn(OUT, IN)
    if draw(st.booleans()):
        plan += OPS.masked_linear_pack(weight, mask.bits, plan)
    at = draw(st.integers(0, len(plan) - 1))
    plan[at] = changed(draw, plan[at])
    try:
        run(mask, plan, draw(st.sampled_from([1, 3, 12, 40])))
    except RuntimeError as error:
        assert "plan" in str(error)


@in_debug_mode
def test_changed_bytes():
    check_examples(check_plan)


@in_debug_mode
def test_every_byte_of_a_list():
    """Of an unstructured mask, whose rows and columns stand at the end: numbers beyond the tile are seen."""
    mask = Mask.random((OUT, IN), 0.1)
    x, w = torch.randn(12, IN), torch.randn(OUT, IN)
    for back in range(1, 200):
        plan = mask.plan[0].clone()
        plan[-back] = 255
        with pytest.raises(RuntimeError, match=r"plan\[0\] is corrupt: its lists lead out of the mask"):
            OPS.masked_linear(x, w, mask.bits, [plan, mask.plan[1]], None)


@in_debug_mode
def test_a_packed_weight_of_another_mask():
    """Of as many weights, which its sizes do not tell."""
    one, other = Mask.random((OUT, IN), 0.1), Mask.random((OUT, IN), 0.1)
    weight = torch.randn(OUT, IN)
    packed = OPS.masked_linear_pack(weight, other.bits, [])
    with pytest.raises(RuntimeError, match="plan holds a packed weight of another mask"):
        OPS.masked_linear(torch.randn(2, IN), weight, one.bits, [*one.plan, *packed], None)


@in_debug_mode
def test_what_is_whole_is_taken():
    for mask in (Mask.random((OUT, IN), 0.1), Mask.channels((OUT, IN), torch.arange(0, OUT, 2)), Mask.full((OUT, IN))):
        layer = MaskedLinear(IN, OUT, mask=mask).eval().pack()
        for batch in (1, 12, 40):
            x = torch.randn(batch, IN)
            torch.testing.assert_close(layer(x), masked_linear(x, layer.weight, mask.dense(), layer.bias))


def test_headers():
    """Refused in every mode: plans of another length, at an odd address, or whose patterns are of other sizes."""
    mask = Mask.channels((OUT, IN), torch.arange(0, OUT, 2), torch.arange(0, IN, 3))
    x, w = torch.randn(12, IN), torch.randn(OUT, IN)
    plan = mask.plan[0]
    odd = torch.zeros(plan.numel() + 1, dtype=torch.uint8)[1:].copy_(plan)
    header = plan.clone()
    active_rows = header[:128].view(torch.int64).tolist().index(OUT // 2, 3)
    header[8 * active_rows] += 1
    for bad in (plan[:-1], torch.cat([plan, plan[:8]]), odd, header, plan[:8], plan[None], plan.int()):
        with pytest.raises(RuntimeError, match=r"plan\[0\] is not the plan of a mask of shape \[70, 130\]"):
            OPS.masked_linear(x, w, mask.bits, [bad, mask.plan[1]], None)


def test_no_plan():
    """What exported programs give for a mask that has none, tensors without elements, is as no tensors at all."""
    mask = Mask.random((OUT, IN), 0.1)
    x, w = torch.randn(12, IN), torch.randn(OUT, IN)
    none = mask.bits.new_empty(0)
    assert torch.equal(
        OPS.masked_linear(x, w, mask.bits, [none, none], None), OPS.masked_linear(x, w, mask.bits, [], None)
    )
    for plan in ([none], [none] * 3):
        with pytest.raises(RuntimeError, match="plan must have no tensors, 2, or 6 with a packed weight"):
            OPS.masked_linear(x, w, mask.bits, plan, None)
