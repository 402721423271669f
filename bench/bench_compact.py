"""Compact layers on the CPU: what a weight that is kept as its active values alone costs in time.

    forward   of a compact layer, against the masked one with the same mask, and the dense one
    step      forward and backward
    packed    forward of both, packed

Ratios above 1 mean that the compact layer is faster. bench/memory.py says what it saves.
"""

from __future__ import annotations

from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch import nn

LINEAR = [(1024, 1024, 64), (4096, 1024, 512)]  # out, in, batch
CONV = [(64, 56, 3), (256, 14, 3)]  # channels, height and width, kernel
DENSITIES = [0.5, 0.1]
BATCH = 8  # images


def linear(out: int, inp: int, batch: int) -> tuple[str, nn.Module, type, torch.Tensor]:
    return f"linear {out}x{inp}, batch {batch}", nn.Linear(inp, out), MaskedLinear, torch.randn(batch, inp)


def conv(channels: int, size: int, kernel: int) -> tuple[str, nn.Module, type, torch.Tensor]:
    dense = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    name = f"conv {kernel}x{kernel}, {channels} channels, {size}x{size}, batch {BATCH}"
    return name, dense, MaskedConv2d, torch.randn(BATCH, channels, size, size)


def case(section: str, made: tuple[str, nn.Module, type, torch.Tensor], density: float, budget: float) -> dict:
    """One line of the result."""
    name, dense, kind, x = made
    masked = kind.from_dense(dense, Mask.random(dense.weight.shape, density))
    compact = masked.to_compact()
    layers = {"dense": dense, "masked": masked, "maskfuse": compact}
    backward = section == "step"
    if section == "packed":
        masked.eval().pack()
        compact.eval().pack()
    with torch.no_grad():
        grad = torch.randn_like(dense(x))

    def run(layer: nn.Module) -> Callable[[], object]:
        parameters = list(layer.parameters())
        return (lambda: torch.autograd.grad(layer(x), parameters, grad)) if backward else (lambda: layer(x))

    with torch.set_grad_enabled(backward):
        times = timing.compare({key: run(layer) for key, layer in layers.items()}, budget, min_rounds=5)
    return {"case": f"{name}, {1 - density:.0%} masked", "section": section, **timing.measured(times)}


def main() -> int:
    parser = timing.arguments(__doc__, "one linear layer, one density")
    parser.set_defaults(budget=0.5)
    options = timing.parsed(parser)
    made = [linear(*LINEAR[0])] if options.quick else [linear(*one) for one in LINEAR] + [conv(*one) for one in CONV]
    densities = DENSITIES[1:] if options.quick else DENSITIES
    cases = [(s, one, density) for one in made for density in densities for s in ("forward", "step", "packed")]
    rows = [case(*one, options.budget) for one in timing.progress(cases)]
    return timing.listed("compact", rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
