"""What the tests of schedules share: small models with every kind of layer, and their training."""

from __future__ import annotations

import contextlib

import torch
from maskfuse.nn import MaskedConv2d, MaskedLinear
from maskfuse.schedule import RigL
from torch import nn


def network(dtype=torch.float32):
    return nn.Sequential(
        MaskedConv2d(2, 6, 3, padding=1, dtype=dtype),
        nn.ReLU(),
        MaskedConv2d(6, 4, 3, stride=2, groups=2, dtype=dtype),
        nn.Flatten(),
        MaskedLinear(36, 20, dtype=dtype),
        nn.ReLU(),
        nn.Linear(20, 8, dtype=dtype),
        MaskedLinear(8, 5, dtype=dtype),
    )


NUMEL = {"0": 108, "2": 108, "4": 720, "7": 40}  # of network()'s masked layers
TOTAL = sum(NUMEL.values())


def masked_layers(model):
    return [m for m in model.modules() if isinstance(m, (MaskedConv2d, MaskedLinear))]


def recording(schedule):
    """RigL's context; nothing for the others."""
    return schedule.dense_gradient() if isinstance(schedule, RigL) else contextlib.nullcontext()


def step(model, optimizer, schedule, generator=None):
    """One step of training on noise; returns whether masks changed."""
    x = torch.randn(8, 2, 8, 8, generator=generator)
    optimizer.zero_grad()
    with recording(schedule):
        loss = (model(x) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    return schedule.step()


def under_masks(model):
    return torch.cat([layer.weight.detach()[~layer.mask.dense()] for layer in masked_layers(model)])
