"""Raw kernels in one thread, one instruction set at a time, and what torch's dispatcher adds to a call.

The kernels are called from the pybind11 module that CMake builds (csrc/python), on NumPy arrays; the op is the same
kernel through `torch.ops.maskfuse`, in turns with it. Where the op would leave the product to torch's library there is
none to compare. GFLOP/s count products with active weights, GB/s what must be read and written at least: input, output
and active weights, or a mask's bits and its plan.

    make build/cmake/release/.raw && python bench/microbench.py      # make bench does both
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import timing  # first: it pins the threads before torch starts them
from benchmarks import no_raw
from records import ROOT

sys.path.insert(0, str(ROOT / "build/cmake/release"))

try:
    import maskfuse_raw as raw
except ModuleNotFoundError:
    raise SystemExit(no_raw()) from None
import numpy as np
import torch
from maskfuse import Mask, channel_gather, channel_scatter

OPS = torch.ops.maskfuse
LINEAR = [(16, 16, 4), (1024, 1024, 1), (1024, 1024, 64)]  # out, in, batch; the first shows what a call costs
CONV = [(64, 28, 3, 1), (256, 14, 1, 1)]  # channels, height and width, kernel, images
CHANNELS = (8, 256, 14, 14)
DENSITIES = [0.5, 0.1]
PASSES = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Case:
    """A raw call, the op that is to give the same, or None, and what the call computes and moves."""

    kernel: str
    name: str
    isa: str
    raw: Callable[[], np.ndarray]
    op: Callable[[], torch.Tensor] | None
    products: int
    moved: int


def plans(mask: Mask, taps: int) -> dict[str, np.ndarray]:
    """For each pass the raw module's plan; `taps` is 0 for a linear layer."""
    rows, columns = mask.shape[0], mask.numel // mask.shape[0]
    turned = OPS.mask_transpose(mask.bits, columns, max(taps, 1)).numpy().view(np.uint32)
    forward = raw.mask_plan(words(mask), columns, taps)
    backward = raw.mask_plan(turned, rows * max(taps, 1), taps)
    return {"forward": forward, "input_grad": backward, "weight_grad": forward}


def by_library(candidates: str) -> bool:
    """Whether an op would leave a pass to torch's library."""
    return candidates.split()[0] == "library"


def words(mask: Mask) -> np.ndarray:
    return mask.bits.numpy().view(np.uint32)


def linear(isa: str, shapes: list[tuple[int, int, int]], densities: list[float]) -> Iterator[Case]:
    for (out, inp, batch), density in itertools.product(shapes, densities):
        mask = Mask.random((out, inp), density)
        x, dy, w = torch.randn(batch, inp), torch.randn(batch, out), torch.randn(out, inp)
        planned = plans(mask, 0)
        operands = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}
        for which in PASSES:
            a, b = (t.numpy() for t in operands[which])
            found = OPS.masked_linear_candidates(which, batch, mask.bits, inp, mask.plan, torch.float32)
            op = getattr(OPS, "masked_linear_unrecorded" if which == "forward" else f"masked_linear_{which}")
            more = [None] if which == "forward" else []  # its bias
            yield Case(
                f"masked_linear {which}",
                f"{out}x{inp}, batch {batch}, {1 - density:.0%} masked",
                isa,
                partial(raw.masked_gemm, which, a, b, words(mask), plan=planned[which] if mask.plan else None, isa=isa),
                None if by_library(found) else partial(op, *operands[which], mask.bits, mask.plan, *more),
                2 * batch * mask.active,
                4 * (batch * (inp + out) + mask.active),
            )


def convolutions(isa: str, shapes: list[tuple[int, int, int, int]], densities: list[float]) -> Iterator[Case]:
    for channels, size, kernel, images in shapes:
        pad, one = [kernel // 2] * 2, [1, 1]
        x, dy = torch.randn(images, channels, size, size), torch.randn(images, channels, size, size)
        w = torch.randn(channels, channels, kernel, kernel)
        operands = {"forward": (x, w), "input_grad": (dy, w), "weight_grad": (dy, x)}
        sizes = {"forward": None, "input_grad": [size, size], "weight_grad": [kernel, kernel]}
        name = f"{kernel}x{kernel}, {channels} channels, {size}x{size}, {images} image"
        for density, which in itertools.product(densities, PASSES):
            mask = Mask.random(w.shape, density)
            a, b = (t.numpy() for t in operands[which])
            about = (list(x.shape), [kernel] * 2, mask.bits, mask.plan, one, pad, one, 1, torch.float32, False)
            found = OPS.masked_conv2d_candidates(which, *about)
            op = getattr(OPS, "masked_conv2d_unrecorded" if which == "forward" else f"masked_conv2d_{which}")
            plan = plans(mask, kernel * kernel)[which]
            asked = {"size": sizes[which], "padding": pad, "isa": isa}
            yield Case(
                f"masked_conv2d {which}",
                f"{name}, {1 - density:.0%} masked",
                isa,
                partial(raw.masked_conv2d, which, a, b, words(mask), plan=plan, **asked),
                None
                if by_library(found)
                else partial(op, *operands[which], mask.bits, mask.plan, sizes[which], one, pad, one, 1),
                2 * images * size * size * mask.active,
                4 * (2 * x.numel() + mask.active),
            )
        for which in PASSES if isa != "scalar" else ():  # which has no such kernel
            chosen = Mask.random((images, channels), 0.5)
            a, b = (t.numpy() for t in operands[which])
            asked = {"size": sizes[which], "padding": pad, "isa": isa}
            op = OPS.gathered_conv2d if which == "forward" else getattr(OPS, f"gathered_conv2d_{which}")
            yield Case(
                f"gathered_conv2d {which}",
                f"{name}, half of the channels",
                isa,
                partial(raw.gathered_conv2d, which, a, b, words(chosen), **asked),
                partial(op, *operands[which], chosen.bits, sizes[which], one, pad, one),
                2 * chosen.active * size * size * channels * kernel * kernel,
                4 * (x.numel() * 3 // 2 + w.numel()),
            )


def portable(quick: bool) -> Iterator[Case]:
    """Kernels that have no instruction set of their own: channels, and the plan of a mask."""
    x = torch.randn(CHANNELS)
    count = CHANNELS[1] // 2
    half = torch.randperm(CHANNELS[1])[:count]
    small = channel_gather(x, half)
    flat, flat_small = (t.flatten(2).numpy() for t in (x, small))
    index, name = half.int().numpy(), "x".join(map(str, CHANNELS)) + ", half of the channels"
    for naive in (False, True):
        isa = "one element at a time" if naive else "portable"
        gather = partial(raw.channel_gather, flat, index, naive=naive)
        scatter = partial(raw.channel_scatter, flat_small, index, CHANNELS[1], naive=naive)
        ops = (None, None)
        if not naive:
            ops = (partial(channel_gather, x, half), partial(channel_scatter, small, half, CHANNELS[1]))
        yield Case("channel_gather", name, isa, gather, ops[0], 0, 8 * small.numel())
        yield Case("channel_scatter", name, isa, scatter, ops[1], 0, 4 * (small.numel() + x.numel()))
    for density in DENSITIES[:1] if quick else DENSITIES:
        mask = Mask.random((1024, 1024), density)
        plan, op = partial(raw.mask_plan, words(mask), 1024), partial(OPS.mask_plan, mask.bits, 1024, 0)
        moved = words(mask).nbytes + plan().nbytes
        yield Case("mask_plan", f"1024x1024, {1 - density:.0%} masked", "portable", plan, op, 0, moved)


def measured(case: Case, budget: float) -> dict:
    """One line of the result."""
    calls: dict[str, Callable[[], object]] = {"raw": case.raw}
    if case.op is not None:
        got, want = case.raw(), case.op().numpy()
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-3, atol=1e-3, err_msg=case.kernel)
        calls["op"] = case.op
    times = timing.compare(calls, budget, min_rounds=5)
    ours = times["raw"]
    row = {"kernel": case.kernel, "case": case.name, "isa": case.isa, "us": ours.median * 1e6}
    row["GFLOP/s"] = case.products / ours.median / 1e9 if case.products else None
    row["GB/s"] = case.moved / ours.median / 1e9
    if case.op is not None:
        row["op us"] = times["op"].median * 1e6
        pairs = zip(times["op"].rounds, ours.rounds, strict=True)
        row["overhead us"] = statistics.median(op - kernel for op, kernel in pairs) * 1e6
    return row | {"spread": ours.spread}


def main() -> int:
    parser = timing.arguments(__doc__, "one shape of each op, one density")
    parser.set_defaults(threads=1, budget=0.2)
    options = timing.parsed(parser)
    few = options.quick
    rows = []
    for isa in timing.progress(raw.levels()):
        before = OPS.set_cpu_level(isa)
        densities = DENSITIES[1:] if few else DENSITIES
        for cases in (
            linear(isa, LINEAR[:1] if few else LINEAR, densities),
            convolutions(isa, CONV[1:] if few else CONV, densities),
        ):
            with torch.no_grad():
                rows += [measured(case, options.budget) for case in cases]
        OPS.set_cpu_level(before)
    rows += [measured(case, options.budget) for case in portable(few)]
    columns = {"kernel": "s", "case": "s", "isa": "s", "us": ".1f", "GFLOP/s": ".1f", "GB/s": ".2f"}
    columns |= {"op us": ".1f", "overhead us": ".1f", "spread": ".0%"}
    timing.table("raw kernels, float32, one thread", rows, columns)
    print(f"written to {timing.write('microbench', rows, options.output, dtype='float32')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
