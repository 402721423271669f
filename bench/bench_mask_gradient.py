"""mask_gradient on the CPU: what freezing a part of a weight adds to the gradient of a linear layer.

    step   forward and backward of F.linear: with `mask_gradient(w, mask)`, with a hook that multiplies the gradient by
           the mask, with `torch.where(mask, w, w.detach())`, and of the plain layer, which freezes nothing

Ratios above 1 mean that maskfuse is faster.
"""

from __future__ import annotations

from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask, mask_gradient
from torch import Tensor
from torch.nn import functional as F

SHAPES = [(1024, 1024), (4096, 1024), (4096, 4096)]
BATCHES = [1, 64, 512]


def case(out: int, inp: int, batch: int, density: float, budget: float) -> dict:
    """One line of the result."""
    x, grad, mask = torch.randn(batch, inp), torch.randn(batch, out), Mask.random((out, inp), density)
    w, hooked = (torch.randn(out, inp).requires_grad_() for _ in range(2))
    active = mask.dense()
    multiplier = active.float()
    hooked.register_hook(lambda g: g * multiplier)

    def run(leaf: Tensor, forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaf, grad)

    calls = {
        "nothing frozen": run(w, lambda: F.linear(x, w)),
        "a hook": run(hooked, lambda: F.linear(x, hooked)),
        "where": run(w, lambda: F.linear(x, torch.where(active, w, w.detach()))),
        "maskfuse": run(w, lambda: F.linear(x, mask_gradient(w, mask))),
    }
    times = timing.compare(calls, budget, min_rounds=5)
    name = f"{out}x{inp}, batch {batch}, {density:.0%} trained"
    return {"case": name, "section": "step", **timing.measured(times)}


def main() -> int:
    parser = timing.arguments(__doc__, "one shape, one batch")
    parser.set_defaults(budget=0.5)
    options = timing.parsed(parser)
    shapes, batches = (SHAPES[:1], BATCHES[1:2]) if options.quick else (SHAPES, BATCHES)
    cases = [(*shape, batch, density) for shape in shapes for batch in batches for density in (0.5, 0.1)]
    rows = [case(*one, options.budget) for one in timing.progress(cases)]
    return timing.listed("mask_gradient", rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
