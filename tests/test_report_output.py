"""A report as text, JSON, a rich table and a picture."""

from __future__ import annotations

import io
import json
import sys

import pytest
from maskfuse import Mask, report
from maskfuse.nn import (
    MaskedLinear,
)
from reported import IMAGES, small
from torch import nn


def test_json_and_text():
    found = report(small(), IMAGES)
    data = json.loads(found.to_json())
    assert data == found.as_dict() and data["model"] == "Sequential" and len(data["layers"]) == 3
    first = data["layers"][0]
    assert first["bytes"]["total"] == found.layers[0].bytes.total and first["size"] == [8, 8] and first["batch"] == 2
    assert data["totals"]["density"] == found.totals.density
    lines = str(found).splitlines()
    assert lines[0] == "Sequential" and lines[1].split()[:3] == ["layer", "kind", "shape"]
    row = lines[3].split()
    assert row[:6] == ["0", "MaskedConv2d", "16x8x3x3", "float32", "channels", "50.00%"]
    assert any(line.startswith("FLOP") and "active" in line for line in lines)
    assert repr(found) == "Report(Sequential, 3 layers, density 0.3417)"


@pytest.mark.parametrize(
    ("width", "columns"), [(60, ["layer", "density"]), (100, ["kernel", "bytes"]), (200, ["dtype"])]
)
def test_rich(width, columns):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width)
    model = nn.ModuleDict({"[red]name[/red]": MaskedLinear(64, 64, mask=Mask.random((64, 64), 0.1))})
    console.print(report(model))
    text = console.file.getvalue()
    assert "[red]name[/red]" in text and "10.01%" in text and all(column in text for column in columns)
    assert max(map(len, text.splitlines())) <= width and "kernels are those of 1" in text
    console.print(report(nn.Linear(2, 2)))
    assert "maskfuse.convert" in console.file.getvalue()


def test_plain_text_needs_no_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    assert "MaskedLinear" in str(report(small()))


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = report(small())
    figure = found.plot(tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    bars, *grid = figure.get_axes()
    assert [patch.get_width() for patch in bars.patches] == [row.density for row in found.layers]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["0", "1", "3"]
    images = [axes.images[0].get_array() for axes in grid]
    assert [image.shape for image in images] == [(16, 64), (16, 64), (64, 64)]
    assert (images[0][:8] == 1).all() and (images[0][8:] == 0).all()
    for image, row in zip(images, found.layers, strict=True):
        assert float(image.mean()) == pytest.approx(row.density, abs=0.05)
    with pytest.raises(ValueError, match="nothing"):
        found.plot(tmp_path / "masks.nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"suffix that says the format.*folder"):
        found.plot(tmp_path / "folder")
    assert not (tmp_path / "folder.png").exists()
    with pytest.raises(OSError, match="missing"):
        found.plot(tmp_path / "missing" / "masks.png")


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib .*maskfuse\[report\]"):
        report(small()).plot()
