"""The examples from the command line: they reach the accuracies that they are shown for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("rich", "sklearn"):  # maskfuse.demo needs both
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_magnitude_pruning():
    rows = {row["budget"]: row for row in json.loads(run("magnitude_pruning.py", "--json"))}
    assert list(rows) == ["dense", "uniform", "erk", "global"]
    dense = rows.pop("dense")
    assert dense["accuracy"] > 0.96 and dense["active"] == dense["weights"] == 84480
    assert all(row["active"] == 8448 for row in rows.values())  # a tenth, exactly
    assert rows["uniform"]["densities"] == pytest.approx([0.1] * 3, abs=1e-3)
    assert rows["erk"]["accuracy"] >= dense["accuracy"] - 0.01
    assert rows["global"]["accuracy"] >= dense["accuracy"] - 0.01
    assert rows["uniform"]["accuracy"] >= dense["accuracy"] - 0.025


@pytest.mark.slow
def test_rigl():
    text = run("rigl.py")
    assert text.splitlines()[0].split() == ["weights", "active", "changed", "accuracy"]
    rows = {row["method"]: row for row in json.loads(run("rigl.py", "--json"))}
    assert list(rows) == ["dense", "fixed", "SET", "RigL"]
    assert rows["dense"]["active"] == 8832 and rows["dense"]["changes"] == 0
    for method in ("fixed", "SET", "RigL"):
        assert rows[method]["active"] == 883  # a tenth, exactly
        assert f"{rows[method]['accuracy']:.2%}" in text  # the same from run to run
    assert rows["fixed"]["changes"] == 0 and rows["RigL"]["changes"] > 40 and rows["SET"]["changes"] > 40
    assert rows["RigL"]["accuracy"] > 0.94
    assert rows["RigL"]["accuracy"] > rows["dense"]["accuracy"] - 0.025
    assert rows["RigL"]["accuracy"] > rows["fixed"]["accuracy"] + 0.015
