"""Measures the numbers of a CPU planner's table, and prints them as csrc/cpu/<op>_planner.cpp has them.

Every kernel runs problems of many shapes, batches and densities; the time of each step that the planner counts is what
fits all of them best (non-negative least squares on relative errors). Shown too: how far estimates are from times, and
what choosing by them costs against the best choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask, build_info
from scipy.optimize import nnls

OPS = torch.ops.maskfuse
DENSITIES = [1.0, 0.7, 0.5, 0.3, 0.1, 0.05, "channels"]
# out, in, batch
LINEAR = [
    (*shape, batch)
    for shape in [(256, 512), (1024, 1024), (4096, 1024), (768, 3072), (1000, 2000)]
    for batch in [1, 8, 12, 16, 37, 64, 197, 512]
]
# out, in, height and width, kernel, stride, batch, memory format: the planner is to do in both
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
CONV = [
    (*shape, batch, memory_format)
    for shape in [
        (64, 64, 56, 3, 1),
        (256, 256, 14, 3, 1),
        (512, 512, 7, 3, 1),
        (128, 64, 56, 3, 2),
        (256, 256, 14, 1, 1),
        (512, 512, 28, 1, 1),
        (64, 256, 56, 1, 1),
        (512, 256, 28, 1, 2),
    ]
    for batch in [1, 8]
    for memory_format in FORMATS
]

Call = Callable[[], object]


def linear_case(problem: tuple[int, ...], mask_of: Callable[[tuple[int, ...]], Mask]) -> dict[str, tuple[str, Call]]:
    """Direction -> its candidates as the planner lists them, and the pass itself."""
    out, inp, batch = problem
    mask = mask_of((out, inp))
    x, w, g = torch.randn(batch, inp), torch.randn(out, inp), torch.randn(batch, out)
    calls = {
        "forward": lambda: OPS.masked_linear(x, w, mask.bits, mask.plan, None),
        "input_grad": lambda: OPS.masked_linear_input_grad(g, w, mask.bits, mask.plan),
        "weight_grad": lambda: OPS.masked_linear_weight_grad(g, x, mask.bits, mask.plan),
    }
    about = (batch, mask.bits, inp, mask.plan, torch.float32)
    return {name: (OPS.masked_linear_candidates(name, *about), call) for name, call in calls.items()}


def conv_case(problem: tuple[Any, ...], mask_of: Callable[[tuple[int, ...]], Mask]) -> dict[str, tuple[str, Call]]:
    """The same of a convolution that keeps the image's size, or divides it by its stride."""
    out, inp, size, kernel, stride, batch, name = problem
    placed = {"memory_format": FORMATS[name]}
    mask = mask_of((out, inp, kernel, kernel))
    geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1], 1)
    x, w = torch.randn(batch, inp, size, size).to(**placed), torch.randn(mask.shape)
    g = torch.randn(batch, out, -(-size // stride), -(-size // stride)).to(**placed)
    calls = {
        "forward": lambda: OPS.masked_conv2d(x, w, mask.bits, mask.plan, None, *geometry),
        "input_grad": lambda: OPS.masked_conv2d_input_grad(g, w, mask.bits, mask.plan, [size] * 2, *geometry),
        "weight_grad": lambda: OPS.masked_conv2d_weight_grad(g, x, mask.bits, mask.plan, [kernel] * 2, *geometry),
    }
    about = ([batch, inp, size, size], [kernel] * 2, mask.bits, mask.plan, *geometry, torch.float32)
    last = name == "channels_last"
    return {
        direction: (OPS.masked_conv2d_candidates(direction, *about, last), call) for direction, call in calls.items()
    }


FAMILIES = {
    "masked_linear": (LINEAR, linear_case, OPS.prefer_masked_linear_kernel),
    "masked_conv2d": (CONV, conv_case, OPS.prefer_masked_conv2d_kernel),
}


def counts_of(text: str) -> dict[str, dict[str, float]]:
    """Kernel -> what the planner counts for it."""
    result = {}
    for line in text.splitlines():
        kernel, _, *counts = line.split()
        result[kernel] = {name: float(count) for name, count in (pair.split("=") for pair in counts)}
    return result


def cases(family: str, budget: float):
    """(label, kernel, counts, seconds), every candidate of a problem in the same alternating rounds."""
    problems, case_of, prefer = FAMILIES[family]

    def on(kernel: str, call: Call) -> Call:
        def run() -> None:
            prefer(kernel)
            call()

        return run

    def mask_of(density: float | str) -> Callable[[tuple[int, ...]], Mask]:
        if density == "channels":
            return lambda shape: Mask.channels(shape, out=torch.rand(shape[0]) < 0.5, inp=torch.rand(shape[1]) < 0.5)
        return lambda shape: Mask.random(shape, density)

    for problem, density in timing.progress([(p, d) for p in problems for d in DENSITIES]):
        for direction, (listed, call) in case_of(problem, mask_of(density)).items():
            counts = counts_of(listed)
            times = timing.compare({kernel: on(kernel, call) for kernel in counts}, budget, min_rounds=5)
            for kernel, timed in times.items():
                yield (direction, *problem, density), kernel, counts[kernel], timed.median
    prefer("")


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
    parser.add_argument("--op", choices=FAMILIES, default="masked_linear", help="whose planner (masked_linear)")
    parser.add_argument("--level", choices=build_info()["cpu_levels"], help="instruction set (the best one)")
    parser.set_defaults(budget=0.02)
    options = timing.parsed(parser)
    if options.level:
        OPS.set_cpu_level(options.level)
    rows = list(cases(options.op, options.budget))
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
