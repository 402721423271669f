"""A masked linear layer's forward pass on the CPU against SparseProp and DeepSparse, alternating in one run.

They want packages that torch does not, so they live in an environment of their own, beside this package built in place:

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r bench/requirements-peers.txt
    PYTHONPATH=python .venv-peers/bin/python bench/peers_masked_linear.py

DeepSparse compiles an ONNX model whose masked weights are zeros; it takes and gives NumPy arrays. SparseProp keeps the
active weights of a layer. Both hold their weights packed, so the layer they are compared with is packed too; "unpacked"
is the same layer as a training step runs it, from the dense weight and the mask.
"""

from __future__ import annotations

import peers  # before torch: it sets up the threads
import torch
from maskfuse import Mask
from maskfuse.nn import MaskedLinear
from torch import nn

SHAPES = [(4096, 1024), (1024, 1024), (4096, 4096)]
DENSITIES = [0.2, 0.1, 0.05]
BOUNDS = {
    "DeepSparse": [(lambda r: r["batch"] == 512, "batch 512", 1.5), (lambda r: r["batch"] == 1, "batch 1", 1.0)],
    "SparseProp": [(lambda r: r["batch"] == 512, "batch 512", 4.0)],
}


def case(out: int, inp: int, density: float, batch: int, options) -> dict:
    """All engines on one layer, in alternating rounds."""
    missing = peers.absent()
    dense = nn.Linear(inp, out)
    unpacked = MaskedLinear.from_dense(dense, Mask.random((out, inp), density)).eval()
    packed = MaskedLinear.from_dense(unpacked).eval().pack()
    zeroed = unpacked.to_dense()
    x = torch.randn(batch, inp)
    weights = {"w": zeroed.weight, "b": zeroed.bias}
    calls = {
        "dense": lambda: dense(x),
        "maskfuse": lambda: packed(x),
        "unpacked": lambda: unpacked(x),
    }
    if "DeepSparse" not in missing:
        engine = peers.deepsparse("Gemm", weights, [(batch, inp), (batch, out)], options.threads, transB=1)
        calls["DeepSparse"] = lambda: engine(x)
    if "SparseProp" not in missing:
        from sparseprop.modules import SparseLinear

        sparse = SparseLinear(zeroed.weight.detach(), zeroed.bias)
        calls["SparseProp"] = lambda: sparse(x)
    with torch.no_grad():
        row = peers.compared(calls, zeroed(x), options)
    return {"out": out, "in": inp, "batch": batch, "density": density} | row


def main() -> int:
    options = peers.options_of(__doc__)
    peers.absent()
    shapes, densities = (SHAPES[1:2], DENSITIES[1:2]) if options.quick else (SHAPES, DENSITIES)
    rows = [case(o, i, density, batch, options) for o, i in shapes for density in densities for batch in (1, 512)]
    columns = {"out": "d", "in": "d", "batch": "d", "density": ".0%", "dense ms": ".3f"}
    return peers.verdicts("peers_masked_linear", "forward", rows, columns, BOUNDS, options)


if __name__ == "__main__":
    raise SystemExit(main())
