"""Masks of channels, and each way to compute with them."""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES
from maskfuse.functional import _channel_masks

N, IN, OUT = 6, 9, 5


@pytest.fixture(params=["compact", "in place", "zeroed", "estimated"])
def way(request, monkeypatch):
    """Each way to compute, and the one that the estimate chooses."""
    costs = {
        "compact": {"_CALL": 0, "_IMAGE_CALL": 0, "_COPY": 0, "_WEIGHT": 0, "_WINDOW_WEIGHT": 0, "_FEWER": 1}
        | {"_IN_PLACE_TYPES": ()},
        "in place": {"_IN_PLACE_TYPES": DTYPES, "_IN_PLACE": 0},
        "zeroed": {"_CALL": 1 << 60, "_IMAGE_CALL": 1 << 60, "_IN_PLACE": 1 << 60},
        "estimated": {},
    }
    for name, cost in costs[request.param].items():
        monkeypatch.setattr(_channel_masks, name, cost)
    return request.param


def masks(samples, width):
    """By name: what samples may share, in and out of order, with nothing and everything active among them."""
    base = torch.rand(3, width) > 0.5
    top = torch.rand(samples, width).topk(width // 2).indices
    every = torch.zeros(samples, width, dtype=torch.bool)
    mixed = base[torch.arange(samples) % 3]
    ends = mixed.clone()
    ends[0], ends[-1], ends[2] = True, False, False
    return {
        "alike": torch.rand(width) > 0.5,
        "alike, a row each": base[:1].expand(samples, width),
        "three in turn": mixed,
        "in order": base[:2].repeat_interleave(samples // 2, 0),
        "top half": every.scatter(1, top, True),
        "some empty or full": ends,
        "none": every,
        "none at all": torch.zeros(width, dtype=torch.bool),
        "all": ~every,
    }
