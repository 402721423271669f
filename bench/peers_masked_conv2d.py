"""A masked convolution's forward pass on the CPU against SparseProp and DeepSparse, alternating in one run.

    PYTHONPATH=python .venv-peers/bin/python bench/peers_masked_conv2d.py

The environment and what is compared are those of peers_masked_linear.py; images are NCHW, which is what both take.
SparseProp has two kernels, over channels and over the batch: the faster one of the two counts.
"""

from __future__ import annotations

import peers  # before torch: it sets up the threads
import torch
from maskfuse import Mask
from maskfuse.nn import MaskedConv2d
from torch import nn

# channels, height and width, kernel; as many outputs as inputs
SHAPES = [(64, 56, 3), (256, 14, 3), (256, 14, 1), (512, 28, 1)]
BATCH = 8
DENSITIES = [0.2, 0.1, 0.05]
BOUNDS = {
    "DeepSparse": [
        (lambda r, shape=shape: (r["channels"], r["size"], r["kernel"]) == shape, "{}, {}, {}".format(*shape), 1.0)
        for shape in SHAPES
    ],
    "SparseProp": [(lambda r: True, "all", 3.0)],
}


def sparseprop(conv: nn.Conv2d, x: torch.Tensor, options):
    """The faster of its kernels for this layer."""
    from sparseprop.modules import SparseConv2d

    both = {
        str(over_batch): SparseConv2d(
            conv.weight.detach(), conv.bias, padding=conv.padding[0], vectorizing_over_on=over_batch
        )
        for over_batch in (False, True)
    }
    times = peers.timing.compare({name: lambda m=m: m(x) for name, m in both.items()}, options.budget / 4)
    return both[min(times, key=lambda name: times[name].median)]


def case(channels: int, size: int, kernel: int, density: float, options) -> dict:
    """All engines on one layer, in alternating rounds."""
    missing = peers.absent()
    dense = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    unpacked = MaskedConv2d.from_dense(dense, Mask.random(dense.weight.shape, density)).eval()
    packed = MaskedConv2d.from_dense(unpacked).eval().pack()
    zeroed = unpacked.to_dense()
    shape = (BATCH, channels, size, size)
    x = torch.randn(shape)
    last, dense_last = (
        x.to(memory_format=torch.channels_last),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
    )
    dense_last = dense_last.to(memory_format=torch.channels_last)
    weights = {"w": zeroed.weight, "b": zeroed.bias}
    with torch.no_grad():
        calls = {
            "dense": lambda: dense(x),
            "dense channels_last": lambda: dense_last(last),
            "maskfuse": lambda: packed(x),
            "unpacked": lambda: unpacked(x),
        }
        if "DeepSparse" not in missing:
            engine = peers.deepsparse(
                "Conv", weights, [shape, shape], options.threads, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4
            )
            calls["DeepSparse"] = lambda: engine(x)
        if "SparseProp" not in missing:
            sparse = sparseprop(zeroed, x, options)
            calls["SparseProp"] = lambda: sparse(x)
        row = peers.compared(calls, zeroed(x), options)
    return {"channels": channels, "size": size, "kernel": kernel, "density": density} | row


def main() -> int:
    options = peers.options_of(__doc__)
    peers.absent()
    shapes, densities = (SHAPES[1:2], DENSITIES[1:2]) if options.quick else (SHAPES, DENSITIES)
    rows = [case(*shape, density, options) for shape in shapes for density in densities]
    columns = {"channels": "d", "size": "d", "kernel": "d", "density": ".0%"}
    columns |= {"dense ms": ".3f", "dense channels_last ms": ".3f"}
    return peers.verdicts("peers_masked_conv2d", f"forward, batch {BATCH}", rows, columns, BOUNDS, options)


if __name__ == "__main__":
    raise SystemExit(main())
