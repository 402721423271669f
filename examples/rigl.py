"""Trains a perceptron on handwritten digits with a tenth of its weights from the beginning.

Their places are fixed at random, or rewired by SET, or by RigL; a dense network is beside them.

python examples/rigl.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from typing import Any

import torch
from maskfuse.demo.model import Data, accuracy
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import SET, RigL
from torch import nn
from torch.nn import functional as F

EPOCHS, BATCH, DENSITY = 60, 64, 0.1
METHODS, SEEDS = ("dense", "fixed", "SET", "RigL"), (0, 1)


def train(method: str, data: Data, seed: int) -> dict[str, Any]:
    """Trains one network; its test accuracy, its active weights, and how often their places changed."""
    torch.manual_seed(seed)
    model = nn.Sequential(MaskedLinear(64, 64), nn.ReLU(), MaskedLinear(64, 64), nn.ReLU(), MaskedLinear(64, 10))
    images, labels = data.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps = EPOCHS * -(-len(images) // BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kind = SET if method == "SET" else RigL
    options = {"end": steps * 3 // 4, "interval": 20, "generator": torch.Generator().manual_seed(seed)}
    density = 1.0 if method == "dense" else DENSITY
    schedule = kind(model, optimizer, density, drop_fraction=0.0 if method == "fixed" else 0.3, **options)
    changes = 0
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            # In steps that change masks RigL needs the gradient of masked weights too; SET draws at random.
            with schedule.dense_gradient() if isinstance(schedule, RigL) else nullcontext():
                loss = F.cross_entropy(model(images[index]), labels[index])
            loss.backward()
            optimizer.step()
            changes += schedule.step()
            rate.step()
    return {"accuracy": accuracy(model, data), "active": sum(schedule.active.values()), "changes": changes}


def main() -> None:
    """Prints a table of means over the seeds, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data, rows = Data(), []
    print(f"{'weights':<8} {'active':>7} {'changed':>8} {'accuracy':>9}")
    for method in METHODS:
        runs = [train(method, data, seed) for seed in SEEDS]
        row = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        print(f"{method:<8} {row['active']:>7.0f} {row['changes']:>7.0f}x {row['accuracy']:>9.2%}", flush=True)
        rows.append({"method": method, **row})
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
