"""masked_conv2d on the CPU against torch: every target of a masked convolution, in one run.

    forward     shapes x densities, both memory formats; plain F.conv2d in the faster of the two, and F.conv2d(x, w * m)
    step        forward and backward
    packed      forward of a packed layer
    structure   channel masks (half of inputs and outputs), whole kernels, blocks of channels; forward and step
    gated       forward of a full weight on half of each image's channels: each image's own, or one of two halves

`vs dense` is against the better of torch's NCHW and channels_last in the same rounds, of repeated calls; `first vs
dense` of the call before them, which finds in the caches what another contender left. Ratios above 1 mean that maskfuse
is faster. `--check` exits with 1 where a target is missed, and says which.
"""

from __future__ import annotations

from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask, masked_conv2d
from maskfuse.nn import MaskedConv2d
from torch.nn import functional as F

# channels, height and width, kernel; as many outputs as inputs
SHAPES = [(64, 56, 3), (256, 14, 3), (256, 14, 1), (512, 28, 1)]
BATCH = 8
DENSITIES = [1.0, 0.7, 0.5, 0.2, 0.1, 0.05]
SPARSE = DENSITIES[2:]
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

# Against plain dense, at densities 0.5, 0.2, 0.1, 0.05; 1x1 on 512 channels at 28x28 is bound by its activations.
FORWARD = dict(zip(SPARSE, (0.95, 1.9, 3.5, 5.5), strict=True))
STEP = dict(zip(SPARSE, (0.95, 1.7, 3.0, 5.0), strict=True))
GATED = 1.6  # half of the channels, against the convolution of all
BOUND_BY_ACTIVATIONS = {0.1: 3.0, 0.05: 4.0}


def masks(shape: tuple[int, ...]) -> dict[str, Mask]:
    """Masks with structure."""
    out, inp = shape[:2]
    half = [torch.randperm(n)[: n // 2] for n in (out, inp)]
    kernels = torch.rand(out, inp, 1, 1) < 0.1
    blocks = (torch.rand(out // 16, inp // 16) < 0.1).repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {
        "half of inputs and outputs": Mask.channels(shape, *half),
        "kernels, 90 %": Mask.from_dense(kernels.expand(shape)),
        "blocks of 16x16 channels, 90 %": Mask.from_dense(blocks.reshape(out, inp, 1, 1).expand(shape)),
    }


GATES = {"channels of each image's own": BATCH, "one of two halves": 2}


def gates(name: str, channels: int) -> torch.Tensor:
    """Half of the channels of each image, bool `[batch, channels]`."""
    halves = torch.rand(GATES[name], channels).topk(channels // 2).indices
    chosen = torch.zeros(GATES[name], channels, dtype=torch.bool).scatter_(1, halves, True)
    return chosen[torch.arange(BATCH) % GATES[name]]


def case(section: str, shape: tuple[int, int, int], mask: Mask, name: str, memory_format: str, options) -> dict:
    """One line of the result."""
    channels, size, kernel = shape
    backward, padding = section == "step", kernel // 2
    w = torch.randn(mask.shape).mul_(0.05).requires_grad_(backward)
    dense = mask.dense().float()
    images = {
        key: torch.randn(BATCH, channels, size, size).to(memory_format=form).requires_grad_(backward)
        for key, form in FORMATS.items()
    }
    grads = {key: torch.randn_like(x).detach() for key, x in images.items()}
    last = w.detach().to(memory_format=torch.channels_last).requires_grad_(backward)
    layer = MaskedConv2d(channels, channels, kernel, padding=padding, bias=False, mask=mask).eval()
    if section == "packed":
        layer.pack()

    def run(forward: Callable[[torch.Tensor], torch.Tensor], key: str, weight: torch.Tensor) -> Callable[[], object]:
        x, grad = images[key], grads[key]
        return (lambda: torch.autograd.grad(forward(x), (x, weight), grad)) if backward else (lambda: forward(x))

    chosen = gates(name, channels) if section == "gated" else None
    ours = layer if section == "packed" else lambda x: masked_conv2d(x, w, mask, padding=padding, channels=chosen)
    calls = {
        "NCHW": run(lambda x: F.conv2d(x, w, padding=padding), "NCHW", w),
        "channels_last": run(lambda x: F.conv2d(x, last, padding=padding), "channels_last", last),
        "w*m": run(lambda x: F.conv2d(x, w * dense, padding=padding), memory_format, w),
        "maskfuse": run(ours, memory_format, w),
    }
    with torch.set_grad_enabled(backward):
        times = timing.compare(calls, options.budget, min_rounds=7)
    best = min((times[key] for key in FORMATS), key=lambda t: t.median)
    label = {"section": section, "channels": channels, "size": size, "kernel": kernel, "batch": BATCH}
    label |= {"format": memory_format, "density": mask.density, "mask": name}
    products = 2 * BATCH * size * size * mask.active * (3 if backward else 1)
    return label | {
        **{f"{key} ms": timed.median * 1e3 for key, timed in times.items()},
        "vs dense": timing.ratio(best, times["maskfuse"]),
        "vs w*m": timing.ratio(times["w*m"], times["maskfuse"]),
        "first vs dense": timing.ratio(best, times["maskfuse"], first=True),
        "spread": times["maskfuse"].spread,
        "GFLOP/s": products / times["maskfuse"].median / 1e9,
    }


def targets(rows: list[dict]) -> list[tuple[str, float, float]]:
    """(what, measured, at least)."""
    found = []
    for row in rows:
        at = (
            f"{row['channels']} channels, {row['size']}x{row['size']}, {row['kernel']}x{row['kernel']}, {row['format']}"
        )
        bounds = STEP if row["section"] == "step" else FORWARD
        density = next((d for d in SPARSE if abs(d - row["density"]) < 0.003), None)
        if row["mask"] == "random" and density is not None:
            least = bounds[density]
            if row["section"] != "step" and (row["channels"], row["kernel"]) == (512, 1):
                least = BOUND_BY_ACTIVATIONS.get(density, least)
            found.append((f"{row['section']}, {1 - density:.0%} masked, {at}", row["vs dense"], least))
        elif row["section"] == "gated":
            found.append((f"gated, {row['mask']}, {at}", row["vs dense"], GATED))
        elif row["mask"] == "half of inputs and outputs":
            found.append((f"{row['section']}, {row['mask']}, {at}", row["vs dense"], 3.0 if bounds is STEP else 3.2))
    found.append(("against w*m, slowest", min(row["vs w*m"] for row in rows if row["section"] != "gated"), 1.0))
    return found


def main() -> int:
    parser = timing.arguments(__doc__, "one shape")
    parser.set_defaults(budget=0.25)
    options = timing.parsed(parser)
    cases = []
    for shape in SHAPES[1:2] if options.quick else SHAPES:
        weight = (shape[0], shape[0], shape[2], shape[2])
        for density in DENSITIES:
            mask = Mask.random(weight, density)
            sections = ["forward", "step", "packed"] if density in SPARSE else ["forward"]
            cases += [(s, shape, mask, "random", form) for s in sections for form in FORMATS]
        for name, mask in masks(weight).items():
            cases += [(s, shape, mask, name, form) for s in ("forward", "step") for form in FORMATS]
        cases += [("gated", shape, Mask.full(weight), name, form) for name in GATES for form in FORMATS]
    rows = [case(*arguments, options) for arguments in timing.progress(cases)]
    columns = {
        "section": "s",
        "channels": "d",
        "size": "d",
        "kernel": "d",
        "format": "s",
        "density": ".0%",
        "mask": "s",
    }
    columns |= {"NCHW ms": ".2f", "channels_last ms": ".2f", "w*m ms": ".2f", "maskfuse ms": ".2f"}
    columns |= {"vs dense": ".2f", "vs w*m": ".2f", "first vs dense": ".2f", "spread": ".0%", "GFLOP/s": ".0f"}
    timing.table(f"masked_conv2d, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    lines = timing.verdicts(targets(rows))
    path = timing.write("masked_conv2d", rows, options.output, targets=lines)
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
