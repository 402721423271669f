"""What training takes in memory: parameters, gradients and Adam's state, and the mask with its plan, by storage.

Dense layers, masked ones and compact ones, after a real step, from the sizes of their tensors; then the peak of a
process that trains a stack of layers, where each pass of a compact layer makes one weight in full.
"""

from __future__ import annotations

import os
import subprocess
import sys

import timing
import torch
from maskfuse import Mask
from maskfuse.nn import CompactConv2d, CompactLinear, MaskedConv2d, MaskedLinear
from torch import nn

DENSITIES = (0.5, 0.3, 0.1)
LAYERS = {  # shape of the weight
    "linear 1024x1024": (1024, 1024),
    "linear 4096x1024": (4096, 1024),
    "conv 256x256x3x3": (256, 256, 3, 3),
    "conv 512x128x1x1": (512, 128, 1, 1),
}
KINDS = ("dense", "masked", "compact")
MOST = 0.2  # of dense, at a density of a tenth

_PLAIN = {2: nn.Linear, 4: nn.Conv2d}
_OURS = {("masked", 2): MaskedLinear, ("masked", 4): MaskedConv2d}
_OURS |= {("compact", 2): CompactLinear, ("compact", 4): CompactConv2d}


def made(kind: str, shape: tuple[int, ...], density: float) -> nn.Module:
    """A layer without a bias, of random values under a random mask."""
    arguments = (shape[1], shape[0], *shape[2:3])
    if kind == "dense":
        return _PLAIN[len(shape)](*arguments, bias=False)
    return _OURS[kind, len(shape)](*arguments, bias=False, mask=Mask.random(shape, density))


def nbytes(tensors) -> int:
    """Bytes of the storages of the tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def training_memory(kind: str, shape: tuple[int, ...], density: float) -> dict[str, int]:
    """Bytes after a step of Adam: of the parameter, its gradient, Adam's state, the mask's bits and its plan."""
    layer = made(kind, shape, density)
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.randn(2, shape[1], *[4] * (len(shape) - 2))
    layer(x).pow(2).sum().backward()
    optimizer.step()
    (parameter,) = layer.parameters()
    mask = getattr(layer, "mask", None)
    return {
        "parameter": nbytes([parameter]),
        "gradient": nbytes([parameter.grad]),
        "state": nbytes(t for t in optimizer.state[parameter].values()),
        "bits": nbytes([mask.bits]) if mask is not None else 0,
        "plan": nbytes(mask.plan) if mask is not None else 0,
    }


def row(name: str, density: float, kind: str) -> dict:
    """A row of the table, with the shares of the dense layer's bytes."""
    sizes, dense = (training_memory(one, LAYERS[name], density) for one in (kind, "dense"))
    trained = sum(sizes[key] for key in ("parameter", "gradient", "state"))
    whole = sum(dense.values())
    share = {"share": trained / whole, "with mask": sum(sizes.values()) / whole}
    return {"layer": name, "masked": 1 - density, "storage": kind, **sizes, **share}


_TRAINS = """
import re, sys, torch
from memory import made

kind, layers, density, width = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
model = torch.nn.Sequential(*[made(kind, (width, width), density) for _ in range(layers)])
optimizer = torch.optim.Adam(model.parameters(), foreach=False)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(16, width)).pow(2).mean().backward()
    optimizer.step()
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def peak(kind: str, density: float, layers: int = 8, width: int = 2048) -> float | None:
    """MiB that training linear layers of `width` x `width` adds to a process that trains a small one; None where the
    system does not say."""
    if sys.platform != "linux":
        return None

    def run(*arguments: object) -> float:
        command = [sys.executable, "-c", _TRAINS, kind, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(timing.RESULTS.parent), *map(str, sys.path)])}
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    return run(layers, density, width) - run(1, density, 64)


def main() -> int:
    parser = timing.arguments(__doc__, "one layer, and no processes whose peak is read")
    parser.add_argument("--no-peak", action="store_true", help="leave out the processes whose peak is read")
    options = timing.parsed(parser)
    layers = list(LAYERS)[:1] if options.quick else LAYERS
    rows = [row(name, density, kind) for name in layers for density in DENSITIES for kind in KINDS]
    columns = {"layer": "s", "masked": ".0%", "storage": "s"}
    columns |= dict.fromkeys(("parameter", "gradient", "state", "bits", "plan"), ",d")
    timing.table("bytes after a step of Adam, float32", rows, columns | {"share": ".3f", "with mask": ".3f"})
    of_compact = [one for one in rows if one["storage"] == "compact" and one["masked"] == 0.9]
    checked = [(f"{one['layer']}, {key}", one[key], -MOST) for one in of_compact for key in ("share", "with mask")]
    peaks = [
        {"storage": kind, "masked": 1 - density, "peak MiB": peak(kind, density)}
        for kind in KINDS
        for density in (DENSITIES if kind != "dense" else (1.0,))
        if not (options.no_peak or options.quick)
    ]
    if peaks:
        timing.table(
            "peak, 8 linear layers of 2048 x 2048 (128 MiB), Adam",
            peaks,
            {"storage": "s", "masked": ".0%", "peak MiB": ".0f"},
        )
    lines = timing.verdicts(checked)
    path = timing.write("memory", rows, options.output, optimizer="Adam", dtype="float32", peaks=peaks, targets=lines)
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
