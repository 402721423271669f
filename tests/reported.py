"""A small model to report on."""

from __future__ import annotations

import torch
from maskfuse import Mask, convert
from torch import nn


def small():
    """A convolution of half of its channels, one of every second tap, a linear layer in blocks, and a plain head."""
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(144, 64)
    )
    model.append(nn.Linear(64, 10))
    masks = {
        "0": Mask.channels((16, 8, 3, 3), out=torch.arange(8)),
        "1": Mask.random((16, 8, 3, 3), 0.25),
        "3": Mask.blocks((torch.arange(8)[:, None] + torch.arange(18)) % 3 == 0, (8, 8)),
    }
    return convert(model, masks)


IMAGES = torch.randn(2, 8, 8, 8)
