"""gated_linear on the CPU against F.linear(x, w * sigmoid(scores)), and against plain F.linear.

    forward   weight times sigmoid of the scores, taken while the weight is read
    step      forward and backward, with gradients of input, weight and scores (of input and weight for plain F.linear)

Ratios above 1 mean that maskfuse is faster. A gate computes with all of the weights: there is nothing to skip.
"""

from __future__ import annotations

from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import gated_linear
from torch import Tensor
from torch.nn import functional as F

SHAPES = [(1024, 1024), (4096, 1024), (4096, 4096)]
BATCHES = [1, 8, 64, 512]


def case(section: str, out: int, inp: int, batch: int, budget: float) -> dict:
    """One line of the result."""
    backward = section == "step"
    x, w, scores = (torch.randn(size).requires_grad_(backward) for size in ((batch, inp), (out, inp), (out, inp)))
    grad = torch.randn(batch, out)

    def run(forward: Callable[[], Tensor], of: tuple[Tensor, ...]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(forward(), of, grad)) if backward else forward

    calls = {
        "dense": run(lambda: F.linear(x, w), (x, w)),
        "w*sigmoid": run(lambda: F.linear(x, w * scores.sigmoid()), (x, w, scores)),
        "maskfuse": run(lambda: gated_linear(x, w, scores), (x, w, scores)),
    }
    with torch.set_grad_enabled(backward):
        times = timing.compare(calls, budget, min_rounds=5)
    return {"case": f"{out}x{inp}, batch {batch}", "section": section, **timing.measured(times)}


def main() -> int:
    parser = timing.arguments(__doc__, "one shape, one batch")
    parser.set_defaults(budget=0.5)
    options = timing.parsed(parser)
    shapes, batches = (SHAPES[:1], BATCHES[2:3]) if options.quick else (SHAPES, BATCHES)
    cases = [(s, *shape, batch) for shape in shapes for batch in batches for s in ("forward", "step")]
    rows = [case(*one, options.budget) for one in timing.progress(cases)]
    return timing.listed("gated_linear", rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
