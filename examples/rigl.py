"""Trains a perceptron on handwritten digits with a tenth of its weights from the beginning.

The weights are fixed at random, rewired by SET, or by RigL, and compared with a dense network.

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
METHODS = ("dense", "fixed", "SET", "RigL")


def train(method: str, data: Data) -> dict[str, Any]:
    """Trains one network; its test accuracy, its active weights, and how often their places changed."""
    torch.manual_seed(0)
    model = nn.Sequential(MaskedLinear(64, 64), nn.ReLU(), MaskedLinear(64, 64), nn.ReLU(), MaskedLinear(64, 10))
    images, labels = data.train
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps = EPOCHS * -(-len(images) // BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kind = SET if method == "SET" else RigL
    options = {"end": steps * 3 // 4, "interval": 20, "generator": torch.Generator().manual_seed(0)}
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
    active = sum(schedule.active.values())
    return {"method": method, "accuracy": accuracy(model, data), "active": active, "changes": changes}


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    data = Data()
    rows = [train(method, data) for method in METHODS]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'weights':<8} {'active':>7} {'changed':>8} {'accuracy':>9}")
    for row in rows:
        print(f"{row['method']:<8} {row['active']:>7} {row['changes']:>7}x {row['accuracy']:>9.2%}")


if __name__ == "__main__":
    main()
