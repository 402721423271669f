"""A masked layer and an optimizer that would move every weight of it."""

from __future__ import annotations

import pytest
from maskfuse import Mask
from maskfuse.nn import MaskedLinear
from optimizers import trained
from torch import optim


@pytest.fixture
def layer():
    return MaskedLinear(9, 7)


@pytest.fixture
def optimizer(layer):
    """With moments of every weight, which move it whatever its gradient is."""
    optimizer = optim.AdamW(layer.parameters(), 0.05, weight_decay=0.1)
    trained(layer, optimizer)
    return optimizer


@pytest.fixture
def mask():
    return Mask.random((7, 9), 0.5)


def under(layer):
    return layer.weight.detach()[~layer.mask.dense()]
