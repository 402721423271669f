"""Averages the weights of a perceptron that is pruned to 90 % while it is trained on handwritten digits.

Once the masks are fixed, the learning rate stays high and the weights are averaged: stochastic weight averaging
(Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"). An exponential average runs
from the beginning, while masks change, and is given them by `sync_masks`. The last iterate is beside them.

python examples/swa.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import json

import torch
from maskfuse import protect, sync_masks
from maskfuse.demo.model import Data, accuracy
from maskfuse.nn import MaskedLinear
from maskfuse.schedule import CubicSchedule
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

EPOCHS, BATCH, DENSITY, SEEDS = 40, 64, 0.1, (0, 1)


def network(seed: int) -> nn.Sequential:
    """A perceptron 64-128-128-10 with batch norms, whose statistics an average needs anew."""
    torch.manual_seed(seed)
    return nn.Sequential(
        MaskedLinear(64, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        MaskedLinear(128, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        MaskedLinear(128, 10),
    )


def train(data: Data, seed: int) -> dict[str, nn.Module]:
    """The last iterate and its averages."""
    model = network(seed)
    images, labels = data.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = protect(torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=1e-4), model)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = CubicSchedule(model, optimizer, DENSITY, begin=steps // 8, end=steps // 2, interval=20, budget="erk")
    swa = AveragedModel(model)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
            ema.update_parameters(model)
            sync_masks(ema, model)  # costs next to nothing while they stay
        if epoch >= EPOCHS * 5 // 8:
            swa.update_parameters(model)
            sync_masks(swa, model)
    update_bn(images.split(BATCH), swa)
    return {"last": model.eval(), "SWA": swa.eval(), "EMA": ema.eval()}


def masked_layers(model: nn.Module) -> list[MaskedLinear]:
    """All of them, in order."""
    return [layer for layer in model.modules() if isinstance(layer, MaskedLinear)]


def main() -> None:
    """Prints a table of means over the seeds, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data, rows = Data(), []
    runs = [train(data, seed) for seed in SEEDS]
    print(f"{'weights':<8} {'accuracy':>9}   nonzero weights, nonzero under the masks of the last")
    for name in runs[0]:
        row = {"weights": name, "accuracy": sum(accuracy(run[name], data) for run in runs) / len(runs)}
        pairs = [p for run in runs for p in zip(masked_layers(run[name]), masked_layers(run["last"]), strict=True)]
        row["active"] = sum(int((ours.weight != 0).sum()) for ours, _ in pairs) // len(runs)
        row["under"] = sum(int((ours.weight[~last.mask.dense()] != 0).sum()) for ours, last in pairs)
        row["same masks"] = all(ours.mask == last.mask for ours, last in pairs)
        print(f"{name:<8} {row['accuracy']:>9.2%}   {row['active']}, {row['under']}", flush=True)
        rows.append(row)
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
