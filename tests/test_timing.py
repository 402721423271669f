"""The timing harness: turns are taken, ratios are of the same round, results are recorded. Nothing is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from maskfuse._timing import Timing, compare, quartiles, ratio, ratios

BENCH = Path(__file__).resolve().parent.parent / "bench"


def test_candidates_take_turns():
    calls = []
    times = compare({name: lambda name=name: calls.append(name) for name in "abc"}, budget=0, min_rounds=4, shortest=0)
    assert all(len(timing.rounds) == len(timing.first) == 4 for timing in times.values())
    # Behind two calls each to warm up: one by itself, then the repeated ones, of which one is enough here.
    assert "".join(calls[6:]) == "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"


def test_ratio_is_taken_round_by_round():
    slow, fast = Timing((2.0, 20.0, 2.2)), Timing((1.0, 10.0, 1.0))  # the machine was busy in the second round
    assert ratio(slow, fast) == 2.0
    assert slow.median == 2.2
    assert ratio(Timing((1.0,), (6.0,)), Timing((1.0,), (2.0,)), first=True) == 3.0
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1.0)
    assert Timing((1.0,)).spread == 0.0
    assert ratios(slow, fast) == (2.0, 2.0, 2.2)
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (1.5, 4.5) and quartiles((7.0,)) == (7.0, 7.0)


@pytest.mark.skipif(not BENCH.exists(), reason="needs the repository around it")
def test_benchmark_writes_its_record(tmp_path):
    path = tmp_path / "result.json"
    process = subprocess.run(
        [
            sys.executable,
            str(BENCH / "bench_masked_linear.py"),
            "--quick",
            "--budget",
            "0",
            "--rounds",
            "2",
            "--output",
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(path.read_text())
    assert result["command"].endswith("bench_masked_linear.py --quick --budget 0 --rounds 2")
    assert result["machine"]["cpu_level"] and result["machine"]["threads"] and result["command"]
    sections = [row["section"] for row in result["rows"]]
    assert {name: sections.count(name) for name in sections} == {"grid": 12, "step": 8, "packed": 12, "structure": 4}
    for row in result["rows"]:
        assert row["vs dense"] > 0 and row["maskfuse ms"] > 0 and row["GFLOP/s"] > 0
    targets = {target["what"]: target for target in result["targets"]}
    slowest = targets["grid, against w*m, slowest"]
    assert slowest["measured"] == min(row["vs w*m"] for row in result["rows"] if row["section"] == "grid")
    assert slowest["met"] == (slowest["measured"] >= slowest["bound"])
    assert f"of {len(targets)} targets met" in process.stdout
    assert "CUDA" in result["peers"]["torch.sparse semi-structured"] or torch.cuda.is_available()
