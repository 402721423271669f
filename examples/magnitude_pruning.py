"""Prunes a perceptron to 90 % while it is trained on handwritten digits, and compares it with a dense one.

python examples/magnitude_pruning.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import json

import torch
from maskfuse.demo.model import Data, accuracy
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import CubicSchedule
from torch import nn
from torch.nn import functional as F

EPOCHS, BATCH, DENSITY = 30, 64, 0.1


def network() -> nn.Sequential:
    """A perceptron 64-256-256-10, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(MaskedLinear(64, 256), nn.ReLU(), MaskedLinear(256, 256), nn.ReLU(), MaskedLinear(256, 10))


def train(model: nn.Module, data: Data, budget: str | None) -> float:
    """The test accuracy after training; without a budget nothing is masked."""
    images, labels = data.train
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    steps = EPOCHS * -(-len(images) // BATCH)
    # Dense for a fifth of the training, pruned until three fifths, then fine-tuned.
    schedule = budget and CubicSchedule(
        model, optimizer, DENSITY, begin=steps // 5, end=steps * 3 // 5, interval=20, budget=budget
    )
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
            if schedule:
                schedule.step()
    return accuracy(model, data)


def main() -> None:
    """Prints a table, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data, rows = Data(), []
    print(f"{'budget':<8} {'active weights':>16} {'accuracy':>9}   density of each layer")
    for budget in (None, "uniform", "erk", "global"):
        model = network()
        row = {"budget": budget or "dense", "accuracy": train(model, data, budget)}
        masks = [layer.mask for layer in model if isinstance(layer, MaskedLinear)]
        row |= {"active": sum(mask.active for mask in masks), "weights": sum(mask.numel for mask in masks)}
        row["densities"] = [mask.density for mask in masks]
        densities = " ".join(f"{density:>7.1%}" for density in row["densities"])
        print(
            f"{row['budget']:<8} {row['active']:>7} of {row['weights']} {row['accuracy']:>9.2%}   {densities}",
            flush=True,
        )
        rows.append(row)
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
