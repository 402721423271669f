"""Prunes channels of a residual network on handwritten digits, and cuts them out: smaller, faster, equal outputs.

It is trained with an L1 penalty on the scales of its batch norms, which say what a channel is worth. The half with the
smallest scales is masked, in what makes these channels and in what reads them, and the network is fine-tuned (network
slimming: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017). `compact` then
leaves the masked channels out, those of the residual stream too.

python examples/channel_pruning.py [--json]       # needs scikit-learn and rich: pip install "maskfuse[demo]"
"""

from __future__ import annotations

import argparse
import copy
import json
from typing import Any

import torch
from maskfuse import Mask, compact, convert
from maskfuse._timing import compare, ratio
from maskfuse.demo.model import Data, accuracy
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, KEEP = 48, 0.5  # channels of the stream, and the share of channels that stays
EPOCHS, TUNING, BATCH, PENALTY = 10, 5, 64, 2e-3


class Block(nn.Module):
    """What is added to the stream of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(2 * WIDTH)
        self.conv2, self.norm2 = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, WIDTH, height, width]` -> the same."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Network(nn.Module):
    """A residual network for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 64]` -> `[batch, 10]`."""
        x = F.relu(self.norm(self.stem(images.unflatten(1, (1, 8, 8)))))
        x = self.blocks[1](F.avg_pool2d(self.blocks[0](x), 2))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def train(model: nn.Module, data: Data, epochs: int, penalty: float) -> None:
    """Adam on cross entropy, and the penalty times the sum of all norms' scales."""
    images, labels = data.train
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[index]), labels[index])
            if penalty:
                loss = loss + penalty * sum(norm.weight.abs().sum() for norm in norms(model))
            loss.backward()
            optimizer.step()
        rate.step()
    model.eval()


def best(scales: Tensor) -> Tensor:
    """Bool: the share of the channels with the largest scales that stays."""
    return Mask.topk(scales, KEEP).dense()


def prune(model: Network) -> Network:
    """A copy in which the channels with the smallest scales are masked: their weights, and those that read them."""
    blocks: Any = model.blocks
    # Of the stream's channels, all norms that add to it have a scale: a channel is worth the largest of them.
    adding = [model.norm, *(block.norm2 for block in blocks)]
    kept = best(torch.stack([norm.weight.detach().abs() for norm in adding]).amax(0))
    masks = {"stem": (kept, None), "head": (None, kept.repeat_interleave(4))}
    for i, block in enumerate(blocks):
        inner = best(block.norm1.weight.detach().abs())
        masks |= {f"blocks.{i}.conv1": (inner, kept), f"blocks.{i}.conv2": (kept, inner)}
    pruned = copy.deepcopy(model)
    for name, (out, inp) in masks.items():
        convert(pruned, {name: Mask.channels(model.get_submodule(name).weight.shape, out, inp)})
    return pruned


def main() -> None:
    """Prints a table, and with --json the same as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON in the last line")
    as_json = parser.parse_args().json
    data = Data()
    torch.manual_seed(0)
    dense = Network()
    train(dense, data, EPOCHS, PENALTY)
    masked = prune(dense)
    train(masked, data, TUNING, 0.0)
    images = data.test[0]
    small = compact(masked, images[:2])

    models = {"dense": dense, "masked": masked, "compact": small}
    with torch.inference_mode():
        times = compare({name: lambda model=model: model(images[:64]) for name, model in models.items()}, budget=3.0)
        outputs = {name: model(images) for name, model in models.items()}
    rows = []
    columns = f"{'network':<8} {'parameters':>10} {'bytes':>8} {'ms of 64':>8} {'dense / it':>10} {'accuracy':>9}"
    print(f"{columns}   from masked")
    for name, model in models.items():
        row = {
            "network": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
            "milliseconds": times[name].median * 1e3,
            "ratio": ratio(times["dense"], times[name]),
            "accuracy": accuracy(model, data),
            "difference": float((outputs[name] - outputs["masked"]).abs().max()),
        }
        print(
            f"{name:<8} {row['parameters']:>10} {row['bytes']:>8} {row['milliseconds']:>8.2f} {row['ratio']:>9.2f}x"
            f" {row['accuracy']:>9.2%}   {row['difference']:.1e}"
        )
        rows.append(row)
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
