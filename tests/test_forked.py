"""Processes forked from one that computes, spawned ones that are sent layers and masks, and DataLoader's workers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from maskfuse import Mask, masked_linear
from maskfuse.nn import CompactLinear, MaskedConv2d, MaskedLinear

forks = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def run_script(script):
    """In a process of its own, that forks nothing of the tests' threads."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr


# Torch's OpenMP threads do not survive a fork, for its own ops either: a child begins with set_num_threads(1), as
# DataLoader's workers do.
@forks
def test_a_child_of_a_process_whose_threads_compute():
    run_script("""
        import os, signal, threading, torch
        import maskfuse.mask
        from maskfuse import Mask, masked_linear
        from maskfuse.nn import MaskedConv2d

        torch.set_num_threads(2)
        bits = Mask.random((300, 400), 0.1).bits
        conv = MaskedConv2d(20, 30, 3, mask=Mask.random((30, 20, 3, 3), 0.3))
        x, w, image = torch.randn(64, 400), torch.randn(300, 400), torch.randn(2, 20, 12, 12)

        def results():
            leaves = x.detach().requires_grad_(), w.detach().requires_grad_()
            y = masked_linear(*leaves, Mask.from_bits(bits, (300, 400)))
            return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves), conv(image).detach()]

        results()
        torch.set_num_threads(1)
        want = results()
        torch.set_num_threads(2)
        results()
        held = threading.Event()

        def plan_for_long():
            with maskfuse._mask.plans._planning:
                held.set()
                threading.Event().wait()

        threading.Thread(target=plan_for_long, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            torch.set_num_threads(1)
            os._exit(0 if all(map(torch.equal, results(), want)) else 3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        os._exit(0)  # not joining the thread
    """)


class Rows(torch.utils.data.Dataset):
    """Rows of what layers give, computed in the workers."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        masks = Mask.random((80, 90), 0.1), Mask.random((8, 4, 3, 3), 0.4)
        self.linear = MaskedLinear(90, 80, mask=masks[0])
        self.conv = MaskedConv2d(4, 8, 3, mask=masks[1])
        self.compact = CompactLinear.from_dense(torch.nn.Linear(90, 80), masks[0])
        self.linear.eval().pack()
        _ = masks[0].plan

    def __len__(self):
        return 6

    @torch.no_grad()
    def __getitem__(self, at):
        x, image = torch.linspace(at, 1, 90), torch.linspace(at, 1, 100).view(1, 4, 5, 5)
        return torch.cat([self.linear(x), self.compact(x), self.conv(image).flatten(), self.own_mask(x)])

    def own_mask(self, x):
        """By a mask that is planned in the worker."""
        mask = Mask.from_bits(self.linear.mask.bits, (80, 90))
        return masked_linear(x, self.linear.weight, mask)


@pytest.mark.parametrize("how", [pytest.param("fork", marks=forks), "spawn"])
def test_workers_of_a_data_loader(how):
    rows = Rows()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _ = rows[0], torch.randn(500, 500) @ torch.randn(500, 500)  # threads have computed before the fork
        torch.set_num_threads(1)  # what workers have
        want = torch.stack([rows[at] for at in range(len(rows))])
        torch.set_num_threads(2)
        loader = torch.utils.data.DataLoader(rows, batch_size=3, num_workers=2, multiprocessing_context=how, timeout=90)
        got = torch.cat(list(loader))
    finally:
        torch.set_num_threads(before)
    # A spawned worker has no packed copy: pickles carry none.
    assert torch.equal(got, want) if how == "fork" else torch.allclose(got, want, atol=1e-5)


def arrive(sent, answer):
    """In the spawned process: what came is whole."""
    layers, mask = sent
    answer.put(
        [
            (type(layer).__name__, layer.mask == mask, layer.mask.structure, len(layer.mask.plan), layer.packed_nbytes)
            for layer in layers
        ]
    )


def test_layers_and_masks_sent_to_a_process():
    import torch.multiprocessing as mp

    mask = Mask.random((80, 90), 0.1)
    layers = [MaskedLinear(90, 80, mask=mask).eval().pack(), CompactLinear.from_dense(torch.nn.Linear(90, 80), mask)]
    _ = mask.plan, mask.structure
    context = mp.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=arrive, args=((layers, mask), answer))
    process.start()
    found = answer.get(timeout=100)
    process.join(30)
    assert process.exitcode == 0
    assert found == [(name, True, "unstructured", 2, 0) for name in ("MaskedLinear", "CompactLinear")]
