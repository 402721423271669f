"""A masked linear layer's forward pass on the CPU against SparseProp and DeepSparse, alternating in one run.

They want packages that torch does not, so they live in an environment of their own, beside this package built in place:

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r bench/requirements-peers.txt
    PYTHONPATH=python .venv-peers/bin/python bench/peers_masked_linear.py

DeepSparse compiles an ONNX model whose masked weights are zeros; it takes and gives NumPy arrays. SparseProp keeps the
active weights of a layer. Both hold their weights packed, so the layer they are compared with is packed too; "unpacked"
is the same layer as a training step runs it, from the dense weight and the mask.
"""

from __future__ import annotations

import os
import tempfile

# Threads float here: bound ones would leave the main thread, and with it DeepSparse's, a single core.
os.environ["OMP_PROC_BIND"] = "false"

import timing  # before torch: it sets up the threads
import torch
from maskfuse import Mask
from maskfuse.nn import MaskedLinear
from torch import nn

SHAPES = [(4096, 1024), (1024, 1024), (4096, 4096)]
DENSITIES = [0.2, 0.1, 0.05]
# Times faster than each, at batch 512 and at batch 1.
TARGETS = {"DeepSparse": {512: 1.5, 1: 1.0}, "SparseProp": {512: 4.0}}


def deepsparse_layer(layer: nn.Linear, batch: int, threads: int):
    import deepsparse
    import onnx
    from onnx import helper, numpy_helper

    weights = [
        numpy_helper.from_array(layer.weight.detach().numpy(), "w"),
        numpy_helper.from_array(layer.bias.detach().numpy(), "b"),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, width])
        for name, width in (("x", layer.in_features), ("y", layer.out_features))
    ]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph([node], "layer", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(model, file.name)
        engine = deepsparse.compile_model(file.name, batch_size=batch, num_cores=threads)
    return lambda x: engine.run([x])[0]


def case(out: int, inp: int, density: float, batch: int, options) -> dict:
    """All engines on one layer, in alternating rounds."""
    from sparseprop.modules import SparseLinear

    dense = nn.Linear(inp, out)
    unpacked = MaskedLinear.from_dense(dense, Mask.random((out, inp), density)).eval()
    packed = MaskedLinear.from_dense(unpacked).eval().pack()
    zeroed = unpacked.to_dense()
    sparse = SparseLinear(zeroed.weight.detach(), zeroed.bias)
    x = torch.randn(batch, inp)
    array, engine = x.numpy(), deepsparse_layer(zeroed, batch, options.threads)
    calls = {
        "dense": lambda: dense(x),
        "maskfuse": lambda: packed(x),
        "unpacked": lambda: unpacked(x),
        "DeepSparse": lambda: torch.from_numpy(engine(array)),
        "SparseProp": lambda: sparse(x),
    }
    with torch.no_grad():
        want = zeroed(x)
        for name in ("maskfuse", "unpacked", "DeepSparse", "SparseProp"):
            torch.testing.assert_close(calls[name](), want, atol=1e-3, rtol=1e-3, msg=name)
        times = timing.compare(calls, options.budget, min_rounds=9)
    row = {"out": out, "in": inp, "batch": batch, "density": density}
    row |= {f"{name} ms": timed.median * 1e3 for name, timed in times.items()}
    for name in ("dense", "DeepSparse", "SparseProp"):
        row[f"vs {name}"] = timing.ratio(times[name], times["maskfuse"])
        row[f"unpacked vs {name}"] = timing.ratio(times[name], times["unpacked"])
    return row


def main() -> int:
    parser = timing.arguments(__doc__)
    parser.set_defaults(budget=0.5)
    options = parser.parse_args()
    timing.pin(options.threads)
    torch.manual_seed(0)
    rows = [case(o, i, density, batch, options) for o, i in SHAPES for density in DENSITIES for batch in (1, 512)]
    columns = {"out": "d", "in": "d", "batch": "d", "density": ".0%"}
    columns |= {f"{name} ms": ".3f" for name in ("dense", "DeepSparse", "SparseProp", "maskfuse", "unpacked")}
    columns |= {
        f"{form}vs {name}": ".2f" for name in ("dense", "DeepSparse", "SparseProp") for form in ("", "unpacked ")
    }
    timing.table(f"forward, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    print(f"written to {timing.write('peers_masked_linear', rows, options.output)}")
    missed = 0
    for name, bounds in TARGETS.items():
        for batch, bound in bounds.items():
            worst = min(row[f"vs {name}"] for row in rows if row["batch"] == batch)
            missed += worst < bound
            verdict = "met   " if worst >= bound else "MISSED"
            print(f"{verdict} {worst:6.2f} >= {bound:.2f}  {name}, batch {batch}, slowest")
    return int(options.check and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
