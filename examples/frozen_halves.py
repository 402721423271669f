"""Teaches a network a second task with half of its weights, while the other half stays bit for bit what it was.

It learns the digits 0 to 4 with the larger half of each layer's weights; these are frozen, and the other half learns
the digits 5 to 9. Masked to its first half the network then is the one that it was (Mallya & Lazebnik 2018, "PackNet:
Adding Multiple Tasks to a Single Network by Iterative Pruning"). Beside it all weights are fine-tuned, or the output
layer's alone.

python examples/frozen_halves.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import copy
import json
from typing import Any

import torch
from maskfuse import Mask, protect
from maskfuse.demo.model import Data
from maskfuse.nn import MaskedLinear, freeze, frozen_mask
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS, BATCH, OUTPUTS = 20, 64, 5
METHODS = ("all", "output layer", "free half")


def task(number: int, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The images of five digits, and their labels 0 to 4."""
    images, labels = part
    chosen = labels // OUTPUTS == number
    return images[chosen], labels[chosen] % OUTPUTS


def outputs(model: nn.Module, images: Tensor, number: int) -> Tensor:
    """A task's own outputs, `[images, 5]`."""
    return model(images)[:, OUTPUTS * number : OUTPUTS * (number + 1)]


def train(model: nn.Module, data: Data, number: int) -> None:
    """AdamW, whose weight decay and moments would move what is masked or frozen, if it were not protected."""
    images, labels = task(number, data.train)
    generator = torch.Generator().manual_seed(number)
    optimizer = protect(torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1), model)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(outputs(model, images[index], number), labels[index]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, number: int) -> float:
    """Share of a task's test images that get the right digit, of five."""
    images, labels = task(number, data.test)
    return float((outputs(model, images, number).argmax(1) == labels).float().mean())


def masked_layers(model: nn.Module) -> list[MaskedLinear]:
    """All of them, in order."""
    return [layer for layer in model.modules() if isinstance(layer, MaskedLinear)]


def first_task(data: Data) -> nn.Sequential:
    """A perceptron 64-64-32-10 that knows the digits 0 to 4 by half of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(MaskedLinear(64, 64), nn.ReLU(), MaskedLinear(64, 32), nn.ReLU(), MaskedLinear(32, 10))
    train(model, data, 0)
    for layer in masked_layers(model):
        layer.set_mask(Mask.topk(layer.weight.abs(), 0.5))
    train(model, data, 0)
    return model


def second_task(first: nn.Sequential, data: Data, method: str) -> nn.Sequential:
    """A copy that has learned the digits 5 to 9 too, with what the method trains."""
    model = copy.deepcopy(first)
    *hidden, last = masked_layers(model)
    own = torch.arange(10) // OUTPUTS == 1  # the second task's outputs
    for layer in hidden:
        if method == "free half":
            freeze(layer.weight, ~layer.mask)
        if method != "all":
            layer.bias.requires_grad_(False)
        if method == "output layer":
            layer.weight.requires_grad_(False)
    if method == "free half":
        freeze(last.weight, ~last.mask)
    if method != "all":
        freeze(last.bias, own)
    for layer in masked_layers(model):
        layer.set_mask(Mask.full(layer.mask.shape))  # all weights are used; those that were masked begin at zero
    train(model, data, 1)
    return model


def run(first: nn.Sequential, data: Data, method: str) -> dict[str, Any]:
    """Both tasks' accuracies after the second one, and how much of the first one's half is what it was."""
    model = second_task(first, data, method)
    masks = [layer.mask for layer in masked_layers(first)]
    pairs = list(zip(masked_layers(model), masked_layers(first), strict=True))
    same = [
        (new.weight.view(torch.int32) == old.weight.view(torch.int32))[mask.dense()]
        for (new, old), mask in zip(pairs, masks, strict=True)
    ]
    row = {
        "trained": method,
        "accuracy": accuracy(model, data, 1),
        "frozen": sum(m.numel - m.active for m in map(frozen_mask, (new.weight for new, _ in pairs)) if m is not None),
        "unchanged": sum(int(flags.sum()) for flags in same),
        "half": sum(mask.active for mask in masks),
    }
    if method == "free half":  # then the first task's network is still there, under its masks
        for layer, mask in zip(masked_layers(model), masks, strict=True):
            layer.set_mask(mask)
    images, _ = task(0, data.test)
    row["first"] = accuracy(model, data, 0)
    row["same outputs"] = torch.equal(outputs(model, images, 0), outputs(first, images, 0))
    return row


def main() -> None:
    """Prints a table, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data = Data()
    first = first_task(data)
    before = accuracy(first, data, 0)
    print(f"{'trained':<13} {'digits 0-4':>10} {'before':>9} {'digits 5-9':>11}   of the first half unchanged")
    rows = []
    for method in METHODS:
        row = {**run(first, data, method), "first before": before}
        print(
            f"{method:<13} {row['first']:>10.2%} {before:>9.2%} {row['accuracy']:>11.2%}   "
            f"{row['unchanged']} of {row['half']}",
            flush=True,
        )
        rows.append(row)
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
