"""The demo's measurements, its table and its plot."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from .. import _timing
from ..backends import use_backend
from ..info import build_info
from ..nn import MaskedLinear
from . import model as m

SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98]
NAMES = {"dense": "nn.Linear", "multiplied": "F.linear(x, w*m)", "maskfuse": "maskfuse"}


def _training_step(model: nn.Module, data: m.Data) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # rate 0: every timed step does the same work
    images, labels = (t[: m.BATCH] for t in data.train)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _kept_for_backward(model: nn.Module, data: m.Data) -> int:
    """Bytes that autograd holds between forward and backward, beyond parameters, masks and images."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedLinear)]
    masks = [t for layer in layers for t in (layer.mask.bits, *layer.mask.plan)]
    lasting = [*model.parameters(), *model.buffers(), *masks, *data.train]
    own = {t.untyped_storage().data_ptr() for t in lasting}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    images, labels = (t[: m.BATCH] for t in data.train)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(model(images), labels)
    del loss
    return sum(kept.values())


@torch.no_grad()
def _difference(model: nn.Module, data: m.Data) -> float:
    """Largest difference of a logit from the reference in float64."""
    images = data.test[0]
    with use_backend("reference"):
        exact = copy.deepcopy(model).double()(images.double())
    return float((model(images).double() - exact).abs().max())


def _measure(advance: Callable[[str], None]) -> dict[str, Any]:
    torch.manual_seed(0)
    data = m.Data()
    advance("training the dense network")
    dense = m.network()
    m.train(dense, data, epochs=40, rate=1e-3, seed=0)
    rows: list[dict[str, Any]] = [
        {"sparsity": 0.0, "accuracy": m.accuracy(dense, data), "pruned": None, "difference": None}
    ]
    networks = []
    for sparsity in SPARSITIES:
        advance(f"masking {sparsity:.0%} and fine-tuning")
        network = m.masked(dense, sparsity)
        pruned = m.accuracy(network, data)
        m.train(network, data, epochs=20, rate=5e-4, seed=1)
        row = {"sparsity": sparsity, "accuracy": m.accuracy(network, data), "pruned": pruned}
        rows.append({**row, "difference": _difference(network, data)})
        networks.append(network)
    for row, network in zip(rows[1:], networks, strict=True):
        advance(f"timing a step at {row['sparsity']:.0%}")
        candidates = {"dense": dense, "multiplied": m.multiplied(network), "maskfuse": network}
        times = _timing.compare({name: _training_step(c, data) for name, c in candidates.items()}, budget=3.0)
        for name, candidate in candidates.items():
            row[f"{name} ms"] = times[name].median * 1e3
            row[f"{name} kept"] = _kept_for_backward(candidate, data)
        for name in ("dense", "multiplied"):
            row[f"vs {name}"] = _timing.ratio(times[name], times["maskfuse"])
    info = build_info()
    return {
        "rows": rows,
        "batch": m.BATCH,
        "parameters": sum(p.numel() for p in dense.parameters()),
        "threads": torch.get_num_threads(),
        "torch": info["torch"],
        "cpu_level": info["cpu_level"],
    }


def _table(result: dict[str, Any]) -> Table:
    title = (
        f"Handwritten digits, perceptron 64-{m.HIDDEN}-{m.HIDDEN}-10, float32, batch {result['batch']}, "
        f"{result['threads']} threads, {result['cpu_level']}, torch {result['torch']}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("sparsity", justify="right")
    table.add_column("test accuracy\n(before tuning)", justify="right")
    for name in NAMES.values():
        table.add_column(f"{name}\nms a step", justify="right")
    table.add_column("faster than\ndense / w*m", justify="right")
    table.add_column("kept for backward, KiB\ndense / w*m / maskfuse", justify="right", no_wrap=True)
    table.add_column("largest differ-\nence, reference", justify="right")
    for row in result["rows"]:
        cells = [f"{row['sparsity']:.0%}"]
        cells.append(f"{row['accuracy']:.2%}" + (f" ({row['pruned']:.2%})" if row["pruned"] is not None else ""))
        if row["pruned"] is None:
            table.add_row(*cells)
            continue
        cells += [f"{row[f'{name} ms']:.2f}" for name in NAMES]
        cells.append(f"{row['vs dense']:.2f}x / {row['vs multiplied']:.2f}x")
        cells.append(" / ".join(f"{row[f'{name} kept'] / 1024:,.0f}" for name in NAMES))
        cells.append(f"{row['difference']:.1e}")
        table.add_row(*cells)
    return table


def _plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    ticks = range(len(rows))
    labels = [f"{row['sparsity']:.0%}" for row in rows]
    left.plot(ticks, [row["accuracy"] * 100 for row in rows], "o-", label="fine-tuned")
    left.plot(ticks[1:], [row["pruned"] * 100 for row in rows[1:]], "s--", label="just masked")
    left.set(title="Test accuracy", xlabel="sparsity", ylabel="%", xticks=list(ticks), xticklabels=labels)
    left.legend()
    width = 0.27
    for offset, (name, label) in enumerate(NAMES.items()):
        places = [i + (offset - 1) * width for i in range(len(rows) - 1)]
        right.bar(places, [row[f"{name} ms"] for row in rows[1:]], width, label=label)
    right.set(title=f"Training step, batch {result['batch']}", xlabel="sparsity", ylabel="ms")
    right.set_xticks(list(range(len(rows) - 1)), labels[1:])
    right.set_ylim(top=1.3 * right.get_ylim()[1])
    right.legend(ncols=3, loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(output: Path, json_output: bool = False) -> int:
    """Runs the demo; writes `demo.json` and `demo.png` to `output` and prints the table, or the JSON."""
    start = time.perf_counter()
    bar = Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1 + 2 * len(SPARSITIES))
        done = -1

        def advance(description: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=description, completed=done)

        result = _measure(advance)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (output / "demo.json").write_text(text + "\n")
    _plot(result, output / "demo.png")
    if json_output:
        print(text)
        return 0
    console = Console(width=max(150, Console().width))
    console.print(_table(result))
    console.print(f"{time.perf_counter() - start:.0f} s; {output / 'demo.json'} and {output / 'demo.png'} written")
    return 0
