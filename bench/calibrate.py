"""Measures the numbers of the CPU planner's table, and prints them as csrc/cpu/masked_linear_planner.cpp has them.

Every kernel runs problems of many shapes, batches and densities; the time of each step that the planner counts is what
fits all of them best (non-negative least squares on relative errors). Shown too: how far estimates are from times, and
what choosing by them costs against the best choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask
from scipy.optimize import nnls

SHAPES = [(256, 512), (1024, 1024), (4096, 1024), (768, 3072), (1000, 2000)]
BATCHES = [1, 8, 12, 16, 37, 64, 197, 512]
DENSITIES = [1.0, 0.7, 0.5, 0.3, 0.1, 0.05, "channels"]
OPS = torch.ops.maskfuse


def candidates(direction: str, batch: int, mask: Mask) -> dict[str, dict[str, float]]:
    """Kernel -> what the planner counts for it."""
    text = OPS.masked_linear_candidates(direction, batch, mask.bits, mask.shape[1], mask.plan, torch.float32)
    result = {}
    for line in text.splitlines():
        kernel, _, *counts = line.split()
        result[kernel] = {name: float(count) for name, count in (pair.split("=") for pair in counts)}
    return result


def calls_of(out: int, inp: int, batch: int, mask: Mask) -> dict[str, Callable[[], object]]:
    """The three passes of a layer."""
    x, w, g = torch.randn(batch, inp), torch.randn(out, inp), torch.randn(batch, out)
    return {
        "forward": lambda: OPS.masked_linear(x, w, mask.bits, mask.plan, None),
        "input_grad": lambda: OPS.masked_linear_input_grad(g, w, mask.bits, mask.plan),
        "weight_grad": lambda: OPS.masked_linear_weight_grad(g, x, mask.bits, mask.plan),
    }


def on(kernel: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call, on that kernel."""

    def run() -> None:
        OPS.prefer_masked_linear_kernel(kernel)
        call()

    return run


def cases(budget: float):
    """(label, kernel, counts, seconds), every candidate of a problem in the same alternating rounds."""
    problems = [(o, i, b, d) for o, i in SHAPES for b in BATCHES for d in DENSITIES]
    for out, inp, batch, density in timing.progress(problems):
        if density == "channels":
            mask = Mask.channels((out, inp), out=torch.rand(out) < 0.5, inp=torch.rand(inp) < 0.5)
        else:
            mask = Mask.random((out, inp), density)
        for direction, call in calls_of(out, inp, batch, mask).items():
            counts = candidates(direction, batch, mask)
            times = timing.compare({kernel: on(kernel, call) for kernel in counts}, budget, min_rounds=5)
            for kernel, timed in times.items():
                yield (direction, out, inp, batch, density), kernel, counts[kernel], timed.median
    OPS.prefer_masked_linear_kernel("")


def library_costs(budget: float) -> dict[str, float]:
    """What the library takes for a product in each dtype, where float32 is 1: library_cost in csrc/cpu/isa.cpp."""
    calls = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, w = torch.randn(512, 1024).to(dtype), torch.randn(2048, 1024).to(dtype)
        calls[str(dtype).removeprefix("torch.")] = lambda x=x, w=w: torch.nn.functional.linear(x, w)
    times = timing.compare(calls, budget, min_rounds=5)
    return {name: timed.median / times["float32"].median for name, timed in times.items()}


def main() -> None:
    parser = timing.arguments(__doc__)
    parser.add_argument("--level", help="instruction set (the best one)")
    parser.set_defaults(budget=0.02)
    options = parser.parse_args()
    timing.pin(options.threads)
    torch.manual_seed(0)
    if options.level:
        OPS.set_cpu_level(options.level)
    rows = list(cases(options.budget))
    names = list(rows[0][2])
    share = numpy.array([1.0 if name in ("phase", "call") else 1.0 / options.threads for name in names])
    counts = numpy.array([[row[2][name] for name in names] for row in rows]) * share
    seconds = numpy.array([row[3] for row in rows]) * 1e9
    rates, _ = nnls(counts / seconds[:, None], numpy.ones(len(rows)))
    print("  // " + " ".join(f"{name:>10}" for name in names))
    print("  {  " + ", ".join(f"{rate:>9.3g}" for rate in rates) + "};")
    estimates = counts @ rates
    errors = estimates / seconds
    for kernel in dict.fromkeys(row[1] for row in rows):
        mine = numpy.array([error for error, row in zip(errors, rows, strict=True) if row[1] == kernel])
        print(
            f"{kernel:>12}: estimate / time, median {numpy.median(mine):.2f}, 5-95 % {numpy.quantile(mine, 0.05):.2f}"
            f" to {numpy.quantile(mine, 0.95):.2f}, {len(mine)} cases"
        )
    lost = {}
    for label in dict.fromkeys(row[0] for row in rows):
        same = [k for k, row in enumerate(rows) if row[0] == label]
        chosen = min(same, key=lambda k: estimates[k])
        best = min(same, key=lambda k: seconds[k])
        lost[label] = (seconds[chosen] / seconds[best], rows[chosen][1], rows[best][1])
    costs = ", ".join(f"{name} {cost:.2f}" for name, cost in library_costs(1.0).items())
    print(f"library_cost: {costs} (a double counts twice in the table: half of its figure goes there)")
    ratios = [ratio for ratio, *_ in lost.values()]
    print(f"chosen / best: mean {numpy.mean(ratios):.3f}, 95 % {numpy.quantile(ratios, 0.95):.2f}; the worst:")
    for label, (ratio, chosen, best) in sorted(lost.items(), key=lambda item: -item[1][0])[:8]:
        print(f"  {ratio:.2f}  {chosen} for {best}: {label}")


if __name__ == "__main__":
    main()
