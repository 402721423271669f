"""Modes of ChannelGate, and what they keep by hand."""

from __future__ import annotations

import torch

N, C = 5, 12
NAN, INF = float("nan"), float("inf")
SHAPES = [(), (7,), (4, 3), (1, 1), (2, 3, 2)]
MODES = {"mask": {"mask": torch.arange(C) % 3 == 1}, "top-k": {"k": 4}, "threshold": {"threshold": 0.1}}


def statistic_by_hand(x, kind):
    flat = x.double().reshape(*x.shape[:2], -1)
    flat = flat.abs() if kind == "mean_abs" else flat
    return flat.mean(2) if flat.shape[2] else flat.sum(2)


def active_by_hand(x, mode, kind):
    if "mask" in mode:
        return mode["mask"].expand(x.shape[:2])
    statistic = statistic_by_hand(x, kind)
    if "threshold" in mode:
        return statistic > mode["threshold"]
    active = torch.zeros(x.shape[:2], dtype=torch.bool)
    for n, row in enumerate(statistic.tolist()):
        known = [c for c in range(len(row)) if row[c] == row[c]]
        active[n, sorted(known, key=lambda c: -row[c])[: mode["k"]]] = True
    return active


def spread(active, x):
    return active.reshape(*active.shape, *[1] * (x.dim() - 2)).expand_as(x)


def gate_by_hand(x, active):
    return torch.where(spread(active, x), x, torch.zeros((), dtype=x.dtype))
