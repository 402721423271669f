"""The demo from the command line: what it prints is what it measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

for package in ("rich", "sklearn", "matplotlib"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_demo(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "maskfuse", "demo", "--json", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert json.loads((tmp_path / "demo.json").read_text()) == result
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    dense, *rows = result["rows"]
    assert dense["accuracy"] > 0.95
    assert [row["sparsity"] for row in rows] == [0.5, 0.8, 0.9, 0.95, 0.98]
    assert rows[0]["accuracy"] > 0.95
    assert rows[-1]["accuracy"] > rows[-1]["pruned"]  # fine-tuning recovers what masking cost
    weight = 1024 * 1024 * 4
    for row in rows:
        assert row["difference"] < 1e-4
        assert row["maskfuse kept"] == row["dense kept"]  # nothing beyond the plain layers' activations
        assert row["multiplied kept"] >= row["dense kept"] + weight
