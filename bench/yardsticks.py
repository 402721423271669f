"""What this processor can do at most, as torch's own libraries do it: the roofs of the roofline picture.

GFLOP/s   the best of products of square float32 matrices
GB/s      the best of copies of float32 vectors much larger than any cache, and for comparison of ones in the caches
"""

from __future__ import annotations

import timing  # first: it pins the threads before torch starts them
import torch

SIDES = (1024, 2048, 4096)
CACHED = 1 << 18  # numbers of a vector that stays in the caches, a MiB
LEAST = 1 << 26  # numbers of one that does not


def product(side: int, budget: float) -> float:
    """GFLOP/s."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    c = torch.empty(side, side)
    timed = timing.compare({"product": lambda: torch.mm(a, b, out=c)}, budget, min_rounds=5)["product"]
    return 2 * side**3 / timed.median / 1e9


def copy(numbers: int, budget: float) -> float:
    """GB/s, of what is read and what is written."""
    source, target = torch.ones(numbers), torch.ones(numbers)
    timed = timing.compare({"copy": lambda: target.copy_(source)}, budget, min_rounds=5)["copy"]
    return 8 * numbers / timed.median / 1e9


def main() -> int:
    parser = timing.arguments(__doc__, "small matrices and vectors")
    options = timing.parsed(parser)
    sides, memory = (SIDES[:1], CACHED) if options.quick else (SIDES, max(LEAST, timing.last_cache() // 4))
    products = {f"product {side}^3, GFLOP/s": product(side, options.budget) for side in sides}
    copies = {
        f"copy of {4 * numbers >> 20} MiB, GB/s": copy(numbers, options.budget)
        for numbers in dict.fromkeys((CACHED, memory))
    }
    roofs = {"GFLOP/s": max(products.values()), "GB/s": list(copies.values())[-1]}
    peaks = products | copies
    for name, value in peaks.items():
        print(f"{value:8.1f}  {name}")
    print(f"written to {timing.write('yardsticks', [], options.output, dtype='float32', roofs=roofs, peaks=peaks)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
