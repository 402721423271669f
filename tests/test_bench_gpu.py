"""The GPU benchmark without a GPU: a dry run on toy sizes, and what it makes of rows and tests that go wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="needs the repository around it")

# What the project promises for one H200: (group, at least, limit), as often as it is measured.
TARGETS = [
    *[("linear", 0.95, 1.0)] * 2,
    *[("compiled", 1.25, 1.33), ("compiled", 1.3, 1.4)],
    *[("decode", 1.5, 1.78), ("decode", 2.2, 2.76), ("decode", 3.5, 6.15)] * 2,
    *[("structure", 1.8, 2.0), ("structure", 3.4, 4.0)],
    *[("structure", 1.7, 2.0), ("structure", 6.5, 10.0)],
    *[("weight_grad", 0.98, 1.0)] * 2,
    *[("channels", 0.85, 1.0)] * 8,
    *[("channels", 3.0, None), ("channels", 4.0, None)] * 4,
    *[("triton", 0.77, None)] * 6,  # within 1.3 times of the compiled kernels
    *[("triton", 1.0, None)] * 4,
    *[("triton", least, None) for least in (1.15, 2.69, 0.96)],
]

BAD_ROWS = """
import os
import time
from gpu_calls import OURS, Calls, NotThereYet, Work
from gpu_rows import Row, Target

ROWS = [
    Row(f"bad: {name}", "bad", f"bad_rows:{name}", targets=(Target("torch", 1.0),))
    for name in ("fails", "wrong", "unwritten", "moving", "dies", "absent", "right")
]


def calls(setting, ours):
    x = setting.normal(64, 64, dtype=__import__("torch").float32)
    work = Work(x.numel() * 8)
    return Calls({"torch": lambda: x + 1, OURS: lambda: ours(x)}, {"torch": work, OURS: work}, lambda: x.double() + 1)


def fails(setting):
    raise ValueError("a row that fails")


def wrong(setting):
    def one_wrong(x):
        y = x + 1
        y[3, 5] += 1
        return y

    return calls(setting, one_wrong)


def unwritten(setting):
    return calls(setting, lambda x: x * float("nan"))


def moving(setting):
    turns = iter(range(1000))
    return calls(setting, lambda x: x + 1 + 1e-6 * next(turns))


def dies(setting):
    os.abort()


def absent(setting):
    raise NotThereYet("no kernel of this")


def right(setting):
    return calls(setting, lambda x: x + 1)


def hangs(setting):
    time.sleep(600)
"""


def dry_run(output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "gpu.py"), "--device", "cpu", "--quick", "--skip-tests"]
    arguments = arguments if "--wheel" in arguments else (*arguments, "--in-place")
    return subprocess.run(
        [*command, "--output", str(output), *arguments], capture_output=True, text=True, timeout=300, cwd=output.parent
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dry run of every row, and of bad ones."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "bad_rows.py").write_text(BAD_ROWS)
    process = dry_run(folder / "result.json", "--cases", str(folder / "bad_rows.py"))
    return process, json.loads((folder / "result.json").read_text())


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture
def place(bench, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)  # counting lines changes how processes end
    phases = bench("gpu_phases")
    return phases.install(None, phases.place_for(tmp_path), 60)[0]


def test_every_target_is_measured(whole):
    _, record = whole
    found = [(row["group"], t["least"], t["limit"]) for row in record["rows"] for t in row["targets"]]
    assert Counter(target for target in found if target[0] != "bad") == Counter(TARGETS)
    assert {"conv", "types"} <= {row["group"] for row in record["rows"]}
    for row in record["rows"]:
        if row["group"] == "bad":
            continue
        assert row["status"] == "measured", row
        assert set(row["ms"]) == set(row["timed"]) == set(row["spread"]) == set(row["achieved"])
        assert all(ms > 0 for ms in row["ms"].values()) and row["rounds"] >= 3
        assert set(row["ratios"]) == set(row["ms"]) - {"maskfuse"} and row["errors"]["maskfuse"]["norm"] >= 0
        for target in row["targets"]:
            assert target["measured"] == row["ratios"][target["against"]]
            assert target["met"] == (target["measured"] >= target["least"])


def test_record_is_complete(whole):
    process, record = whole
    assert {"device", "versions", "yardsticks", "tests", "sanitizer", "rows", "problems", "seconds"} <= set(record)
    assert record["dry_run"] and not record["whole"] and record["device"]["name"] == "cpu"
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["maskfuse"]["cpu_level"]
    assert record["versions"]["package"] == "in place" and len(record["yardsticks"]) == 2
    assert record["tests"]["status"] == record["sanitizer"]["status"] == "not run: not asked for"
    assert str(ROOT) not in json.dumps(record)
    for row in record["rows"]:
        assert row["name"] in process.stdout
    assert "DRY RUN" in process.stdout and "PROBLEM" in process.stdout


def test_what_goes_wrong_is_on_record_and_fails_the_run(whole):
    process, record = whole
    assert process.returncode == 1, process.stdout + process.stderr
    bad = {row["name"].removeprefix("bad: "): row for row in record["rows"] if row["group"] == "bad"}
    states = {name: row["status"] for name, row in bad.items()}
    assert states == {
        "fails": "failed",
        "wrong": "wrong",
        "unwritten": "wrong",
        "moving": "wrong",
        "dies": "failed",
        "absent": "not there yet",
        "right": "measured",
    }
    assert "a row that fails (bad_rows.py:" in bad["fails"]["reason"]
    assert bad["wrong"]["reason"].startswith("maskfuse is wrong") and "ms" not in bad["wrong"]
    assert bad["unwritten"]["errors"]["maskfuse"]["norm"] == "nan"
    assert "does not give the same bits again" in bad["moving"]["reason"]
    assert "the process ended with -6" in bad["dies"]["reason"]
    named = " ".join(record["problems"])
    assert all(f"bad: {name}" in named for name in ("fails", "wrong", "unwritten", "moving", "dies"))
    assert "absent" not in named and len(record["problems"]) == 5


def test_part_of_a_run(tmp_path):
    process = dry_run(tmp_path / "result.json", "--only", "types")
    assert process.returncode == 0, process.stdout + process.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["status"] for row in rows if row["group"] == "types"} == {"measured"}
    assert {row.get("reason") for row in rows if row["group"] != "types"} == {"not asked for"}
    assert "4 measured" in process.stdout


def test_a_dry_run_is_no_result():
    for arguments in ([], ["--output", str(BENCH / "results/cpu.json")], ["--output", "x.json", "--only", "nothing"]):
        command = [sys.executable, str(BENCH / "gpu.py"), "--device", "cpu", *arguments]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 2 and ("dry run" in process.stderr or "no group nothing" in process.stderr)


class Graph:
    """A stand-in for torch.cuda.CUDAGraph, which refuses to be captured if `error` is set."""

    error: str | None = None
    replays = 0

    def __enter__(self):
        if Graph.error:
            raise RuntimeError(Graph.error)

    def __exit__(self, *_):
        pass

    def replay(self):
        Graph.replays += 1


class Event:
    """A stand-in for torch.cuda.Event: a millisecond passes from each record to the next."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.mark.parametrize("error", [None, "operation not permitted\nwhen stream is capturing"])
def test_device_clock_on_stand_ins(bench, monkeypatch, error):
    timing = bench("gpu_timing")
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=60 << 20),
        "current_device": lambda: 0,
        "current_stream": lambda: stream,
        "Stream": lambda: stream,
        "stream": nullcontext,
        "synchronize": lambda: None,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: graph,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "ones", lambda count, device: torch.full((1000,), 1.0))
    monkeypatch.setattr(torch, "empty", lambda shape, device: torch.tensor(0.0))
    monkeypatch.setattr(Graph, "error", error)
    monkeypatch.setattr(Graph, "replays", 0)
    clock = timing.DeviceClock()
    assert [clock.sets(bytes_of_a_call << 20) for bytes_of_a_call in (240, 120, 30, 1, 0)] == [2, 2, 5, 24, 24]
    called = []
    calls = {name: [lambda set=(name, i): called.append(set) for i in range(3)] for name in "ab"}
    times = timing.compare(clock, calls, budget=0.01, min_rounds=4, max_rounds=4)
    assert all(len(measured.timing.rounds) == 4 for measured in times.values())
    # A sample of three calls takes a millisecond, which is enough.
    assert times["a"].timing.median == pytest.approx(1e-3 / 3)
    if error:
        assert times["b"].how == "3 launches, their cost included: not captured (operation not permitted)"
        assert Graph.replays == 0
    else:
        assert times["b"].how == "a graph of 3 calls" and Graph.replays >= 2 + 2 * 4
        # Before a graph: each set by itself, those that are timed, one on another stream, and while it is captured.
        assert [set for set in called if set[0] == "a"] == [("a", i) for i in (0, 1, 2, 0, 1, 2, 0, 0, 1, 2)]


def test_wheel_is_installed_apart(bench, tmp_path):
    phases = bench("gpu_phases")
    wheel, about = tmp_path / "maskfuse-9.9-py3-none-any.whl", "maskfuse-9.9.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("maskfuse/__init__.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: maskfuse\nVersion: 9.9\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    place, found = phases.install(wheel, phases.place_for(tmp_path), 60)
    assert found == {"package": wheel.name, "problems": []}
    code = "import maskfuse; print(maskfuse.__file__)"
    process = subprocess.run([sys.executable, "-c", code], env=dict(place.env), capture_output=True, text=True)
    assert Path(process.stdout.strip()) == tmp_path / "site/maskfuse/__init__.py"
    wheel.write_text("no archive")
    assert "pip install" in phases.install(wheel, phases.place_for(tmp_path), 60)[1]["problems"][0]
    process = dry_run(tmp_path / "result.json", "--wheel", str(wheel))
    record = json.loads((tmp_path / "result.json").read_text())
    assert process.returncode == 1 and {row["reason"] for row in record["rows"]} == {"not reached"}


def test_rows_that_hang_or_come_too_late(bench, place, tmp_path):
    benchmarks, rows = bench("gpu_benchmarks"), bench("gpu_rows")
    cases = tmp_path / "bad_rows.py"
    cases.write_text(BAD_ROWS.replace('("fails", ', '("hangs", '))
    found = {row.name: row for row in rows.all_rows(cases)}
    hangs, right = found["bad: hangs"], found["bad: right"]
    saved = []
    worker = benchmarks.worker_arguments("cpu", cases, 0.02, 3)
    runner = benchmarks.Benchmarks([hangs, right], place, worker, lambda: saved.append(1))
    runner.measure([hangs, right], benchmarks.Limits(time.monotonic() + 100, 2.0))
    first, second = runner.record()
    assert (first["status"], first["reason"], second["status"]) == ("failed", "no result in 2 s", "measured")
    assert len(saved) == 2
    runner.measure([right], benchmarks.Limits(time.monotonic(), 2.0))
    assert runner.record()[1]["reason"] == "budget" and not benchmarks.problems(runner.record()[1:])


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_of_tests_are_counted(bench, place, tmp_path, workers):
    folder = tmp_path / "of another package"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import os, pytest, maskfuse\n"
        "pytestmark = pytest.mark.cuda\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('no')\n"
        "def test_dies(): os._exit(7)\n"
        "def test_fails(): assert maskfuse.__file__ == 'nowhere'\n"
        "def test_passes_behind(): pass\n"
    )
    (folder / "test_other.py").write_text("def test_unmarked(): assert False\n")
    found = bench("gpu_tests").tests(place, folder, 100, workers=workers)
    if workers == 1:  # the process that died is followed by another session
        assert (found["passed"], found["failed"], found["skipped"], found["sessions"]) == (2, 1, 1, 2)
    else:  # xdist replaces it, and counts the test as failed
        assert (found["passed"], found["failed"], found["skipped"], found["sessions"]) == (2, 2, 1, 1)
    messages = {failure["test"].split("::")[1]: failure["message"] for failure in found["failures"]}
    assert set(messages) == {"test_dies", "test_fails"}
    assert ("did not end" if workers == 1 else "crashed") in messages["test_dies"]
    assert "nowhere" in messages["test_fails"] and str(ROOT) not in messages["test_fails"]
    assert found["problems"] == ["2 of the tests failed"]


@pytest.mark.parametrize(
    ("says", "status", "fails"),
    [
        ("ERROR SUMMARY: 0 errors", "clean", False),
        ("ERROR SUMMARY: 3 errors", "errors", True),
        ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "clean", False),
        ("Device not supported", "no verdict", False),
    ],
)
def test_sanitizer_verdicts(bench, place, tmp_path, says, status, fails):
    tool = tmp_path / "compute-sanitizer"
    script = "41 cases ran, 0 results are wrong"  # what the small ops print, which another test runs
    tool.write_text(f"#!/bin/sh\necho '{script}'\necho '========= {says}'\n")
    tool.chmod(0o755)
    found = bench("gpu_sanitizer").sanitizer(place, str(tool), "memcheck", 60)
    assert found["status"] == status and bool(found["problems"]) == fails


def test_small_ops_agree_with_themselves(place):
    process = subprocess.run(
        [sys.executable, str(BENCH / "gpu_small_ops.py"), "cpu"], env=dict(place.env), capture_output=True, text=True
    )
    assert process.returncode == 0 and ", 0 results are wrong" in process.stdout, process.stdout + process.stderr
