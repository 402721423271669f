"""masked_linear on the CPU against torch: plain `F.linear`, and `F.linear(x, w * m)` as people write it.

Targets (`--check`): forward at batch 512 at least 0.95 x plain F.linear at any density, and never slower than
F.linear(x, w * m), on 1024 x 1024 to 4096 x 4096. Ratios above 1 mean that maskfuse is faster.
"""

from __future__ import annotations

import math

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask, masked_linear
from torch.nn import functional as F

SHAPES = [(1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096)]
BATCHES = [1, 8, 64, 512]
DENSITIES = [1.0, 0.5, 0.1]
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def case(out: int, inp: int, batch: int, density: float, backward: bool, budget: float, dtype: torch.dtype) -> dict:
    x = torch.randn(batch, inp).to(dtype).requires_grad_(backward)
    w = torch.randn(out, inp).to(dtype).requires_grad_(backward)
    mask = Mask.random((out, inp), density)
    dense = mask.dense().to(dtype)
    grad = torch.randn(batch, out).to(dtype)

    def step(forward):
        def run():
            y = forward()
            if backward:
                torch.autograd.grad(y, (x, w), grad)
            return y

        return run

    times = timing.compare(
        {
            "dense": step(lambda: F.linear(x, w)),
            "w*m": step(lambda: F.linear(x, w * dense)),
            "maskfuse": step(lambda: masked_linear(x, w, mask)),
        },
        budget,
    )
    ours = times["maskfuse"].median
    products = 2 * batch * out * inp * (3 if backward else 1)
    return {
        "out": out,
        "in": inp,
        "batch": batch,
        "density": density,
        "pass": "fwd+bwd" if backward else "forward",
        "dense ms": times["dense"].median * 1e3,
        "w*m ms": times["w*m"].median * 1e3,
        "maskfuse ms": ours * 1e3,
        "vs dense": timing.ratio(times["dense"], times["maskfuse"]),
        "vs w*m": timing.ratio(times["w*m"], times["maskfuse"]),
        "spread": times["maskfuse"].spread,
        "GFLOP/s": products / ours / 1e9,
        "weight GB/s": w.element_size() * out * inp / ours / 1e9,
    }


def main() -> int:
    parser = timing.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes, two batches, forward only")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the operands (float32)")
    options = parser.parse_args()
    timing.pin(options.threads)
    torch.manual_seed(0)
    shapes, batches = (SHAPES[1::2], BATCHES[::3]) if options.quick else (SHAPES, BATCHES)
    cases = [(o, i, b, d, False) for o, i in shapes for b in batches for d in DENSITIES]
    if not options.quick:
        cases += [(o, i, 512, 0.1, True) for o, i in shapes] + [(o, i, 8, 0.1, True) for o, i in shapes]
    rows = []
    for arguments in timing.progress(cases):
        rows.append(case(*arguments, options.budget, getattr(torch, options.dtype)))
    forward = [row for row in rows if row["pass"] == "forward"]
    worst_dense = min(row["vs dense"] for row in forward if row["batch"] == 512)
    worst_masked = min(row["vs w*m"] for row in forward)
    mean_masked = math.exp(sum(math.log(row["vs w*m"]) for row in forward) / len(forward))
    columns = {
        **{"out": "d", "in": "d", "batch": "d", "density": ".0%", "pass": "s", "dense ms": ".3f", "w*m ms": ".3f"},
        **{"maskfuse ms": ".3f", "vs dense": ".2f", "vs w*m": ".2f", "spread": ".0%"},
        **{"GFLOP/s": ".0f", "weight GB/s": ".1f"},
    }
    timing.table(
        f"masked_linear, {options.dtype}, {options.threads} threads (ratios: above 1 is faster)", rows, columns
    )
    path = timing.write(
        "masked_linear" if options.dtype == "float32" else f"masked_linear_{options.dtype}",
        rows,
        options.output,
        dtype=options.dtype,
        worst_vs_dense_at_512=worst_dense,
        worst_vs_masked=worst_masked,
        geometric_mean_vs_masked=mean_masked,
    )
    print(f"forward, batch 512, slowest against plain F.linear: {worst_dense:.2f} (target 0.95)")
    print(f"forward, slowest against F.linear(x, w * m):        {worst_masked:.2f} (target 1.00)")
    print(f"forward, geometric mean against F.linear(x, w * m): {mean_masked:.2f}")
    print(f"written to {path}")
    return int(options.check and (worst_dense < 0.95 or worst_masked < 1.0))


if __name__ == "__main__":
    raise SystemExit(main())
