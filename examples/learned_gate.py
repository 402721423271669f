"""Learns which weights of a small convolutional network to keep, by an L1 penalty on a gate of each weight.

The gates are trained with the weights on handwritten digits; hardened, they are masks. A dense network is beside them.

python examples/learned_gate.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from maskfuse.demo.model import Data, accuracy
from maskfuse.nn import GatedConv2d, GatedLinear, MaskedConv2d, MaskedLinear
from torch import nn
from torch.nn import functional as F

EPOCHS, BATCH = 30, 64
# What closing one gate is worth, in the mean cross entropy, for each kind of gate; and the score that gates start with.
PENALTIES = {"sigmoid": 5e-5, "straight_through": 1e-4, "hard_concrete": 1.5e-4}
START = {"sigmoid": 0.0, "straight_through": 1.0, "hard_concrete": 1.0}
# Sigmoid gates are driven to 0 and 1 by a temperature that falls to this.
COLDEST = 0.05


def network(kind: str | None) -> nn.Sequential:
    """A convolution and two linear layers, gated, or plain without a kind; weights are always the same."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    if kind is not None:
        for index, layer in enumerate(model):
            twin = {nn.Conv2d: GatedConv2d, nn.Linear: GatedLinear}.get(type(layer))
            if twin is not None:
                model[index] = twin.from_dense(layer, kind, initial_score=START[kind])
    return model


def train(model: nn.Sequential, data: Data, kind: str | None) -> None:
    """Adam on cross entropy and the penalty. Scores learn ten times as fast as weights."""
    images, labels = data.train
    generator = torch.Generator().manual_seed(0)
    gated = [layer for layer in model if isinstance(layer, (GatedConv2d, GatedLinear))]
    scores = [layer.scores for layer in gated]
    weights = [p for p in model.parameters() if not any(p is s for s in scores)]
    groups = [{"params": weights, "lr": 2e-3}, {"params": scores, "lr": 2e-2}]
    optimizer = torch.optim.Adam(groups[: 2 if gated else 1])
    for epoch in range(EPOCHS):
        if kind == "sigmoid":
            for layer in gated:
                layer.temperature = COLDEST ** min(1.0, epoch / (0.7 * EPOCHS))
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[index]), labels[index])
            if kind is not None:
                loss = loss + PENALTIES[kind] * sum(layer.l1_penalty() for layer in gated)
            loss.backward()
            optimizer.step()


def harden(model: nn.Sequential, kind: str) -> nn.Sequential:
    """The masked network. A hard-concrete gate is cut where it is 0, the others at a half."""
    threshold = 0.0 if kind == "hard_concrete" else 0.5
    return nn.Sequential(
        *(layer.harden(threshold) if isinstance(layer, (GatedConv2d, GatedLinear)) else layer for layer in model)
    )


def run(data: Data, kind: str | None) -> dict[str, Any]:
    """Trains and hardens one network: accuracies of both, and how many weights are left."""
    model = network(kind)
    train(model, data, kind)
    model.eval()
    gated = accuracy(model, data)
    if kind is None:
        weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        return {"gates": "dense", "accuracy": gated, "gated accuracy": gated, "active": weights, "weights": weights}
    model = harden(model, kind)
    masks = [layer.mask for layer in model if isinstance(layer, (MaskedConv2d, MaskedLinear))]
    active, weights = sum(mask.active for mask in masks), sum(mask.numel for mask in masks)
    row = {"gates": kind, "accuracy": accuracy(model, data), "gated accuracy": gated}
    return {**row, "active": active, "weights": weights, "densities": [mask.density for mask in masks]}


def main() -> None:
    """Prints a table, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data, rows = Data(), []
    print(f"{'gates':<17} {'active weights':>16} {'with gates':>11} {'hardened':>9}   density of each layer")
    for kind in (None, *PENALTIES):
        row = run(data, kind)
        densities = " ".join(f"{density:>7.1%}" for density in row.get("densities", []))
        print(
            f"{row['gates']:<17} {row['active']:>7} of {row['weights']} {row['gated accuracy']:>11.2%} "
            f"{row['accuracy']:>9.2%}   {densities}",
            flush=True,
        )
        rows.append(row)
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
