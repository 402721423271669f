"""What training takes in memory with compact layers, by the function that bench/memory.py prints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="needs the repository around it")


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    pytest.importorskip("rich")
    yield importlib.import_module("memory")
    sys.modules.pop("memory", None)


@pytest.mark.parametrize("shape", [(256, 512), (64, 64, 3, 3), (128, 64, 1, 1)], ids=str)
def test_a_fifth_of_dense_at_90_percent(memory, shape):
    """Weight, gradient and Adam's state; with the mask's bits and plan too."""
    dense = sum(memory.training_memory("dense", shape, 0.1).values())
    compact = memory.training_memory("compact", shape, 0.1)
    assert sum(compact[key] for key in ("parameter", "gradient", "state")) <= 0.11 * dense
    assert sum(compact.values()) <= memory.MOST * dense
    masked = memory.training_memory("masked", shape, 0.1)
    assert masked["bits"] == compact["bits"] > 0 < compact["plan"] == pytest.approx(masked["plan"], rel=0.1)
    assert sum(masked.values()) >= dense  # the measurement sees what it is meant to see


def test_row(memory, monkeypatch):
    monkeypatch.setitem(memory.LAYERS, "small", (64, 128))
    row = memory.row("small", 0.5, "compact")
    assert row["masked"] == 0.5 and row["share"] == pytest.approx(0.5, abs=0.02) and row["with mask"] > row["share"]
    assert memory.row("small", 0.5, "dense")["share"] == 1
