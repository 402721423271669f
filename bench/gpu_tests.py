"""The step of `gpu.py` that runs the tests which need a GPU, on the installed package."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from gpu_phases import BENCH, ROOT, Place
from gpu_process import Child, run

QUIET_TEST = 90  # seconds without a line on record, after which a test counts as hung
SHARED_BY = min(15, (os.cpu_count() or 1) - 1)  # processes on one device, each with a context of its own


def tests(place: Place, folder: Path, seconds: float, marked: str = "cuda", workers: int = SHARED_BY) -> dict[str, Any]:
    """Runs the tests with a mark on a copy of their folder, next to which no package lies."""
    deadline = time.monotonic() + seconds
    probe = run([sys.executable, "-c", "import pytest"], min(60, seconds), place.log("tests"), place.env, place.folder)
    if probe.status != 0:
        return {"status": "not run: no pytest here", "problems": []}
    copy, record = place.folder / "repository", place.folder / "tests.jsonl"
    shutil.copytree(folder, copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    plugin = place.folder / "plugin"
    plugin.mkdir()
    shutil.copy(BENCH / "gpu_test_record.py", plugin)
    done = place.folder / "tests_before.jsonl"
    env = {**place.finding(plugin), "GPU_TEST_RECORD": str(record), "GPU_TEST_DONE": str(done)}
    command = [sys.executable, "-m", "pytest", "-m", marked, "-p", "gpu_test_record", "-p", "no:cacheprovider"]
    command += ["--tb=short", "--continue-on-collection-errors", *_in_parallel(place, workers), "tests"]
    sessions, why = 0, ""
    while sessions < 20:
        sessions += 1
        done.write_text(record.read_text() if record.exists() else "")
        before = record.stat().st_size if record.exists() else 0
        ended = _session(Child(command, place.log("tests"), env, copy), record, deadline)
        after = record.stat().st_size if record.exists() else 0
        lost = "the device is lost" in place.log("tests").read_text(errors="replace")[-3000:]
        if ended == "out of time":
            why = ended
            break
        # 0, 1 and 5 are sessions that came to their end: all passed, some failed, none left to run.
        if ended in (0, 1, 5) and not lost:
            break
        if after == before:
            why = f"pytest ended with {ended} before any test"
            break
    return {**_counted(record, place, sessions, why, workers), "sessions": sessions}


def _in_parallel(place: Place, workers: int) -> list[str]:
    """Most of a test's time is the host's, compiling Triton's kernels above all: xdist shares it out, where it is."""
    probe = run([sys.executable, "-c", "import xdist"], 60, place.log("tests"), place.env, place.folder)
    return ["-n", str(workers), "--dist", "worksteal"] if workers > 1 and probe.status == 0 else []


def _session(child: Child, record: Path, deadline: float) -> int | str:
    """Exit status of a session, "out of time", or "hung" behind a test that takes too long."""
    try:
        changed, size = time.monotonic(), -1
        while (status := child.poll()) is None:
            now, there = time.monotonic(), record.stat().st_size if record.exists() else 0
            if there != size:
                changed, size = now, there
            if now > deadline:
                return "out of time"
            if now - changed > QUIET_TEST:
                return "hung"
            time.sleep(0.05)
        return status
    finally:
        child.end()


def _counted(record: Path, place: Place, sessions: int, why: str, workers: int) -> dict[str, Any]:
    outcomes: dict[str, str] = {}
    messages: dict[str, str] = {}
    order = {"started": 0, "passed": 1, "skipped": 2, "failed": 3}
    for line in record.read_text().splitlines() if record.exists() else []:
        entry = json.loads(line)
        name, outcome = entry["test"], entry["outcome"]
        if order[outcome] >= order[outcomes.get(name, "started")]:
            outcomes[name] = outcome
        if entry.get("message"):
            messages.setdefault(name, place.plain(entry["message"]))
    counts = {name: list(outcomes.values()).count(name) for name in ("passed", "failed", "skipped")}
    unended = [name for name, outcome in outcomes.items() if outcome == "started"]
    if why == "out of time":
        unended = unended[: -max(1, workers)]  # the last ones, one a process, were merely cut off
    failures = [{"test": name, "message": messages.get(name, "")} for name in outcomes if outcomes[name] == "failed"]
    failures += [{"test": name, "message": "did not end: the process crashed or hung"} for name in unended]
    problems = [f"{len(failures)} of the tests failed"] if failures else []
    if why and why != "out of time":
        problems.append(f"{why}: {place.plain(place.log('tests').read_text(errors='replace')[-2000:])}")
    status = f"not all run: {why}" if why else "run"
    return {"status": status, **counts, "unended": len(unended), "failures": failures, "problems": problems}
