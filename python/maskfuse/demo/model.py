"""The data, the networks and the loops of the demo. Nothing here measures time."""

from __future__ import annotations

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from ..mask import Mask
from ..nn import MaskedLinear

BATCH = 512
HIDDEN = 1024


class Data:
    """UCI handwritten digits, 1797 images of 8 x 8, as scikit-learn carries them: every fifth is for testing."""

    def __init__(self) -> None:
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        labels = torch.tensor(digits.target)
        test = torch.arange(len(images)) % 5 == 0
        self.train = (images[~test], labels[~test])
        self.test = (images[test], labels[test])


def network() -> nn.Sequential:
    """A perceptron 64-1024-1024-10."""
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


def train(model: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> None:
    """Adam on cross entropy. A masked weight has a gradient of exactly 0, so a fresh Adam leaves it at 0."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    images, labels = data.train
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of test images that get the right digit."""
    images, labels = data.test
    return float((model(images).argmax(1) == labels).float().mean())


def masked(model: nn.Sequential, sparsity: float) -> nn.Sequential:
    """A copy with the smallest weights of both hidden layers masked; the output layer is left alone."""
    result = copy.deepcopy(model)
    for index in (0, 2):
        layer = result[index]
        assert isinstance(layer, nn.Linear)
        result[index] = MaskedLinear.from_dense(layer, Mask.topk(layer.weight.abs(), 1 - sparsity))
    return result


class MultipliedLinear(nn.Linear):
    """What people write today: `F.linear(x, weight * mask)`."""

    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """`input` `[..., in]` -> `[..., out]`."""
        return F.linear(input, self.weight * self.mask, self.bias)


def multiplied(model: nn.Sequential) -> nn.Sequential:
    """The same network with `weight * mask` written out."""
    result = copy.deepcopy(model)
    for index, layer in enumerate(model):
        if isinstance(layer, MaskedLinear):
            twin = MultipliedLinear(layer.in_features, layer.out_features)
            twin.load_state_dict(layer.to_dense().state_dict())
            twin.register_buffer("mask", layer.mask.dense().float())
            result[index] = twin
    return result
