"""One mask, or one layer, and many threads: bitwise what one thread gets, and nothing torn."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from maskfuse import Mask, masked_linear
from maskfuse._mask import plans
from maskfuse.nn import CompactLinear, MaskedConv2d, MaskedLinear

THREADS, ROUNDS = 8, 6
OUT, IN = 130, 200  # enough weights for a plan


def in_threads(*works, threads=THREADS):
    """Runs each function in threads that begin together; raises what the first of them raised."""
    barrier, errors = threading.Barrier(threads), []

    def run(number):
        try:
            barrier.wait(30)
            works[number % len(works)]()
        except BaseException as error:
            errors.append(error)

    pool = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join(60)
    assert not any(thread.is_alive() for thread in pool), "threads wait for each other"
    if errors:
        raise errors[0]


def drawn(density=0.1):
    return Mask.random((OUT, IN), density)


def test_the_first_plan_in_a_race():
    """Threads that ask for plan, structure and results of a new mask at once get what one that is alone gets."""
    x, w, grad = torch.randn(20, IN), torch.randn(OUT, IN), torch.randn(20, OUT)
    for _ in range(ROUNDS):
        mask = drawn()
        alone = Mask.from_bits(mask.bits, mask.shape)
        plans, structures, results = [], [], []

        def step(mask=mask, plans=plans, structures=structures, results=results):
            leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
            structures.append((mask.structure, mask.active, hash(mask)))
            plans.append(mask.plan)
            y = masked_linear(*leaves, mask)
            results.append((y.detach(), *torch.autograd.grad(y, leaves, grad)))

        in_threads(step)
        assert all(plan is mask.plan for plan in plans)
        assert all(torch.equal(a, b) for a, b in zip(mask.plan, alone.plan, strict=True))
        assert set(structures) == {(alone.structure, alone.active, hash(alone))}
        step(alone, [], [], want := [])
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, want[0], strict=True))


def test_a_plan_is_made_once(monkeypatch):
    """Also where making it takes so long that all threads ask for it meanwhile."""
    make, made = plans.make_plan, []

    def slowly(mask):
        time.sleep(0.05)
        made.append(make(mask))
        return made[-1]

    monkeypatch.setattr(plans, "make_plan", slowly)
    mask, found = drawn(), []
    in_threads(lambda: found.append(mask.plan))
    assert len(made) == 1 and len(found) == THREADS and all(plan is made[0] for plan in found)


LAYERS = {
    "linear": lambda: (MaskedLinear(IN, OUT, mask=drawn()), torch.randn(9, IN)),
    "conv": lambda: (MaskedConv2d(20, 30, 3, mask=Mask.random((30, 20, 3, 3), 0.2)), torch.randn(2, 20, 9, 8)),
    "compact": lambda: (CompactLinear.from_dense(torch.nn.Linear(IN, OUT), drawn()), torch.randn(9, IN)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_forward_and_backward_of_one_layer(kind):
    layer, x = LAYERS[kind]()
    parameters = list(layer.parameters())

    def step():
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *parameters])]

    want, got = step(), []
    in_threads(lambda: [got.append(step()) for _ in range(ROUNDS)])
    assert len(got) == THREADS * ROUNDS
    assert all(torch.equal(a, b) for result in got for a, b in zip(result, want, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_packing_beside_calls(kind):
    """Calls read the copy, or the weight, while other threads pack and unpack: near the same numbers, never others'."""
    layer, x = LAYERS[kind]()
    layer.eval()

    def calls():
        with torch.no_grad():
            for _ in range(40):
                torch.testing.assert_close(layer(x), want)

    def packs():
        for _ in range(40):
            layer.pack()
            layer.unpack()

    with torch.no_grad():
        want = layer(x)
    in_threads(calls, packs)


def test_masks_set_beside_calls():
    """With `retain` a call computes with one of the masks, whole: plan, bits and packed copy belong together."""
    x = torch.randn(3, IN)
    masks = [drawn(0.1), drawn(0.3), Mask.channels((OUT, IN), torch.rand(OUT) < 0.5, torch.rand(IN) < 0.5)]
    layer = MaskedLinear(IN, OUT)
    with torch.no_grad():
        wants = [masked_linear(x, layer.weight, mask, layer.bias) for mask in masks]

    def calls():
        with torch.no_grad():
            for _ in range(60):
                y = layer(x)
                assert any(torch.allclose(y, want, atol=1e-4) for want in wants)

    def sets():
        for _ in range(20):
            for mask in masks:
                layer.set_mask(mask, retain=True)
                layer.pack()

    layer.set_mask(masks[0], retain=True)
    in_threads(calls, sets)


def test_a_copy_packed_for_another_mask_is_not_read():
    """What a thread finds that is between reading the mask and reading the copy, while another one sets both."""
    layer = MaskedLinear(IN, OUT, mask=drawn(0.1)).eval()
    before = layer.mask
    layer.set_mask(drawn(0.1), retain=True)
    layer.pack()
    assert layer._packed_for(layer.weight, layer.mask)
    assert not layer._packed_for(layer.weight, before)
    layer.__dict__["_mask"] = before
    x = torch.randn(2, IN)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), masked_linear(x, layer.weight, before, layer.bias))
