"""A report as a picture: densities by layer, and masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mask import Mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import Report

CELLS = 64  # of an image, in each direction, at most
_ACROSS = 6  # images in a row


def image(mask: Mask) -> Tensor:
    """The mask as float32 `[height, width]`, both at most 64: the active share of the weights in each cell."""
    dense = mask.dense().cpu().float()
    dense = dense.reshape(dense.shape[0] if dense.dim() > 1 else 1, -1)
    size = (min(CELLS, dense.shape[0]), min(CELLS, dense.shape[1]))
    if 0 in size:
        return torch.zeros(1, 1)
    return F.adaptive_avg_pool2d(dense[None], size)[0]


def picture(report: Report) -> Figure:
    """Bars of each layer's density above an image of each mask."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot needs matplotlib ({error}): pip install 'maskfuse[report]'") from error
    rows = [row for row in report.layers if row.mask is not None]
    if not rows:
        raise ValueError(f"report of {report.model} has no masked layers, so there is nothing to plot")
    across = min(_ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    bars = 1.2 + 0.22 * len(rows)  # inches
    figure = Figure(figsize=(2.2 * _ACROSS, bars + 2.5 * down), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[bars, 2.5 * down])[:, 0]

    axes = above.subplots()
    names = [row.name or row.kind for row in rows]
    places = range(len(rows))
    axes.barh(places, [row.density for row in rows], color="#4878a8")
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("density: active share of the weights")
    axes.set_title(f"{report.model}: {report.totals.density:.2%} of {report.totals.masked_weights:,} weights active")
    for place, row in zip(places, rows, strict=True):
        axes.text(min(row.density + 0.01, 0.93), place, f"{row.density:.2%}", va="center", fontsize=7)

    grid = list(below.subplots(down, across, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, row, name in zip(grid, rows, names, strict=False):
        assert row.mask is not None
        values = image(row.mask).numpy()
        # From nothing active to the densest cell: at a density of a tenth there is no white otherwise.
        axes.imshow(values, cmap="viridis", vmin=0, vmax=max(float(values.max()), 1e-9), aspect="auto")
        axes.set_title(f"{name[-32:]}\n{'x'.join(map(str, row.shape))}, {row.structure}", fontsize=6)
    return figure
