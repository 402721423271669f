"""What the peers_*.py benchmarks share: DeepSparse from one ONNX node, and the verdicts.

Import it before torch, and after `OMP_PROC_BIND` is set: bound threads would leave the main thread, and with it
DeepSparse's, a single core.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence

os.environ["OMP_PROC_BIND"] = "false"

import timing  # before torch: it sets up the threads
import torch
from torch import Tensor

# Name -> package; bench/requirements-peers.txt has them.
ENGINES = {"DeepSparse": "deepsparse", "SparseProp": "sparseprop"}

__all__ = ["absent", "compared", "deepsparse", "options_of", "timing", "verdicts"]


def absent() -> dict[str, str]:
    """The engines that cannot be measured here, and why. Raises SystemExit where there is none to measure."""
    found = {name: "not installed" for name, package in ENGINES.items() if importlib.util.find_spec(package) is None}
    if len(found) == len(ENGINES):
        raise SystemExit(f"neither {' nor '.join(found)} is installed: see bench/requirements-peers.txt")
    return found


def deepsparse(
    operator: str, weights: dict[str, Tensor], shapes: Sequence[Sequence[int]], threads: int, **attributes
) -> Callable[[Tensor], Tensor]:
    """A model of one ONNX operator: its input and output have `shapes`, its other inputs are `weights`."""
    import deepsparse
    import onnx
    from onnx import helper, numpy_helper

    constants = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
        for name, shape in zip("xy", shapes, strict=True)
    ]
    node = helper.make_node(operator, ["x", *weights], ["y"], **attributes)
    graph = helper.make_graph([node], "layer", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(model, file.name)
        engine = deepsparse.compile_model(file.name, batch_size=shapes[0][0], num_cores=threads)
    return lambda x: torch.from_numpy(engine.run([x.numpy()])[0])


def compared(calls: dict[str, Callable[[], Tensor]], want: Tensor, options) -> dict[str, float]:
    """Medians, and ratios of the peers to "maskfuse" and "unpacked"; all calls but "dense" must give what is wanted."""
    for name, call in calls.items():
        if not name.startswith("dense"):
            torch.testing.assert_close(call(), want, atol=1e-3, rtol=1e-3, msg=name)
    times = timing.compare(calls, options.budget, min_rounds=9)
    row = {f"{name} ms": timed.median * 1e3 for name, timed in times.items()}
    for name in ENGINES:
        if name not in times:
            continue
        row[f"vs {name}"] = timing.ratio(times[name], times["maskfuse"])
        row[f"unpacked vs {name}"] = timing.ratio(times[name], times["unpacked"])
        row[f"first vs {name}"] = timing.ratio(times[name], times["maskfuse"], first=True)
    dense = min((timed for name, timed in times.items() if name.startswith("dense")), key=lambda timed: timed.median)
    row["vs dense"] = timing.ratio(dense, times["maskfuse"])
    row["unpacked vs dense"] = timing.ratio(dense, times["unpacked"])
    return row


def options_of(description: str) -> argparse.Namespace:
    """The command line's, with the threads pinned as it says."""
    parser = timing.arguments(description, "one layer")
    parser.set_defaults(budget=0.5)
    return timing.parsed(parser)


def verdicts(name: str, title: str, rows: list[dict], columns: dict[str, str], bounds: dict[str, list], options) -> int:
    """Prints the table and, for each peer, the slowest of the rows that a bound is for; writes the JSON file.

    Bounds are (which rows, their name, at least how many times faster). Returns 1 where `--check` asks and one fails.
    """
    missing = absent()
    there = [name for name in ENGINES if name not in missing]
    columns |= {f"{peer} ms": ".3f" for peer in (*there, "maskfuse", "unpacked")}
    columns |= {f"{form}vs {peer}": ".2f" for peer in ("dense", *there) for form in ("", "unpacked ")}
    timing.table(f"{title}, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    targets = [
        (f"{peer}, {which}, slowest", min(row[f"vs {peer}"] for row in rows if belongs(row)), bound)
        for peer, list_of_bounds in bounds.items()
        for belongs, which, bound in list_of_bounds
        if peer in there and any(belongs(row) for row in rows)
    ]
    lines = timing.verdicts(targets)
    path = timing.write(name, rows, options.output, peers=missing, targets=lines)
    return timing.report(lines, path, options.check)
