"""A residual network on handwritten digits, dense and masked: forward and training step, end to end.

The network is ResNet-18 as it is used on small images (He et al. 2016: 3 x 3 stem, four stages of two basic blocks);
the images are scikit-learn's digits, four times enlarged to 32 x 32. Masked are all convolutions but the stem: the
smaller 90 % of each one's weights, or half of the channels, the same ones wherever activations are added. Masked blocks
have `CompactSequential` in the place of `nn.Sequential`.

Networks take turns, each for some calls one after another, as in a loop over batches: what a call finds in the caches
and in the allocator is what the same network left there. `vs dense` is against the better of the dense network in NCHW
and channels_last. Ratios above 1 mean that maskfuse is faster. `--check` exits with 1 where a target is missed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask
from maskfuse.nn import CompactSequential, MaskedConv2d
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CALLS = 4  # in a turn
WIDTHS = (64, 128, 256, 512)
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TARGETS = {
    ("90 % of weights", "forward"): 2.0,
    ("90 % of weights", "step"): 1.8,
    ("half of channels", "forward"): 2.2,
    ("half of channels", "step"): 2.0,
}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity, or beside a 1 x 1 convolution where the shape changes."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inp, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or inp != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.body(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """`[batch, 1, height, width]` -> `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        blocks, inp = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks += [BasicBlock(inp, width, 1 if stage == 0 else 2), BasicBlock(width, width, 1)]
            inp = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inp, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def masked(model: ResNet, mask_of: Callable[[str, nn.Conv2d], Mask]) -> ResNet:
    """A copy of the network with masks on the convolutions of its blocks, whose bodies hand on live channels only."""
    model = copy.deepcopy(model)
    for name, module in list(model.blocks.named_modules()):
        if isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            setattr(model.blocks.get_submodule(parent), child, MaskedConv2d.from_dense(module, mask_of(name, module)))
    for block in model.blocks:
        block.body = CompactSequential(*block.body)
    return model


def unstructured(name: str, conv: nn.Conv2d) -> Mask:
    return Mask.topk(conv.weight.detach().abs(), 0.1)


def half_of_channels() -> Callable[[str, nn.Conv2d], Mask]:
    """Masks that keep one half of each width's channels, in every convolution that writes or reads them."""
    kept = {width: torch.randperm(width)[: width // 2] for width in WIDTHS}

    def mask_of(name: str, conv: nn.Conv2d) -> Mask:
        return Mask.channels(conv.weight.shape, kept[conv.out_channels], kept[conv.in_channels])

    return mask_of


def digits(batch: int) -> tuple[Tensor, Tensor]:
    """Images `[batch, 1, 32, 32]` in 0..1, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images[:batch], dtype=torch.float32).unsqueeze(1) / 16
    return F.interpolate(images, scale_factor=4, mode="bilinear"), torch.tensor(data.target[:batch])


def call_of(model: nn.Module, x: Tensor, labels: Tensor, section: str) -> Callable[[], object]:
    if section == "forward":
        model.eval()

        def forward() -> None:
            with torch.no_grad():
                for _ in range(CALLS):
                    model(x)

        return forward
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        for _ in range(CALLS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()

    return step


def main() -> int:
    parser = timing.arguments(__doc__, "two images, forward alone")
    parser.add_argument("--batch", type=int, default=16, help="images (16)")
    parser.set_defaults(budget=4.0)
    options = timing.parsed(parser)
    batch, sections = (2, ["forward"]) if options.quick else (options.batch, ["forward", "step"])
    images, labels = digits(batch)
    dense = ResNet()
    models = {
        "dense": dense,
        "90 % of weights": masked(dense, unstructured),
        "half of channels": masked(dense, half_of_channels()),
    }
    rows = []
    for section in timing.progress(sections):
        calls = {}
        for name, model in models.items():
            for key, memory_format in FORMATS.items():
                placed = copy.deepcopy(model).to(memory_format=memory_format)
                calls[name, key] = call_of(placed, images.to(memory_format=memory_format), labels, section)
        times = timing.compare(calls, options.budget * len(calls), min_rounds=7)
        best = min((times["dense", key] for key in FORMATS), key=lambda t: t.median)
        for (name, key), timed in times.items():
            label = {"section": section, "mask": name, "format": key, "batch": batch}
            rows.append(
                label
                | {"ms": timed.median / CALLS * 1e3, "vs dense": timing.ratio(best, timed), "spread": timed.spread}
            )
    columns = {
        "section": "s",
        "mask": "s",
        "format": "s",
        "batch": "d",
        "ms": ".1f",
        "vs dense": ".2f",
        "spread": ".0%",
    }
    timing.table(f"ResNet-18 on digits, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    checked = [
        (f"{section}, {mask} masked, {row['format']}", row["vs dense"], least)
        for (mask, section), least in TARGETS.items()
        for row in rows
        if (row["mask"], row["section"]) == (mask, section)
    ]
    lines = timing.verdicts(checked)
    path = timing.write("models", rows, options.output, targets=lines)
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
