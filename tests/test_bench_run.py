"""The driver of the benchmarks: it runs what it can, says what it cannot, and goes on past what fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_modules import BENCH, imported

for package in ("matplotlib", "rich"):
    pytest.importorskip(package)
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="needs the repository around it")


@pytest.fixture
def run(monkeypatch):
    yield from imported(monkeypatch, "run")


def benchmark(run, name, script="memory.py", reason=""):
    return run.Benchmark(name, (script,), "a test", lambda: reason)


def test_goes_on_past_what_fails(run, monkeypatch, tmp_path, capfd):
    there = (
        benchmark(run, "elsewhere", reason="no such device"),
        benchmark(run, "broken", "no_such_script.py"),
        benchmark(run, "memory"),
    )
    monkeypatch.setattr(run, "BENCHMARKS", there)
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    assert run.main(["--quick", "--folder", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    states = {
        line.split()[1]: line.split()[0] for line in out.splitlines() if line[:6].strip() in ("ok", "FAILED", "absent")
    }
    assert states == {"elsewhere": "absent", "broken": "FAILED", "memory": "ok"}
    assert "no such device" in out and "No such file" in out  # the end of the log
    assert "1 of 3 benchmarks ran" in out and "FAILED: broken" in err
    result = json.loads((tmp_path / "memory.json").read_text())
    assert result["machine"]["processor"] and result["command"].startswith("python bench/memory.py --quick")
    assert "bytes after a step" not in out and "bytes after a step" in (tmp_path / "logs/memory.log").read_text()
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## Memory" in page and result["machine"]["processor"] in page


def test_a_benchmark_without_a_result_failed(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "LOGS", tmp_path)
    stale = tmp_path / "records.json"
    stale.write_text("{}")
    outcome = run.run(benchmark(run, "records", "records.py"), tmp_path, quick=False)  # a module that does nothing
    assert outcome.state == "FAILED" and "wrote no records.json" in outcome.detail
    monkeypatch.setattr(run, "MOST_SECONDS", 0.1)
    outcome = run.run(benchmark(run, "memory"), tmp_path, quick=True)
    assert outcome.state == "FAILED" and "not done after" in outcome.detail


def test_results_of_another_machine_have_a_folder_of_their_own(run, tmp_path):
    facts = {"processor": "Some CPU @ 2 GHz", "processors": 4, "caches": {"L1": "32K"}}
    assert run.folder_for(tmp_path, facts) == tmp_path  # nothing is committed
    (tmp_path / "models.json").write_text(json.dumps({"machine": facts, "rows": []}))
    (tmp_path / "gpu.json").write_text(json.dumps({"device": {"name": "GPU"}, "rows": []}))
    assert run.folder_for(tmp_path, facts) == tmp_path
    assert run.folder_for(tmp_path, facts | {"processors": 8}) == tmp_path / "some-cpu-2-ghz-8"


def test_every_result_has_a_table_and_every_script_is_there(run):
    from results_page import SECTIONS

    for listed in run.BENCHMARKS:
        assert (BENCH / listed.command[0]).exists()
        assert listed.name in SECTIONS or listed.name in ("yardsticks", "gpu_rows")
    assert set(SECTIONS) < {listed.name for listed in run.BENCHMARKS}
    scripts = {path.name for path in [*BENCH.glob("bench_*.py"), *BENCH.glob("peers_*.py")]}
    assert scripts <= {listed.command[0] for listed in run.BENCHMARKS}


def test_arguments():
    def command(*arguments):
        return subprocess.run(
            [sys.executable, str(BENCH / "run.py"), *arguments], capture_output=True, text=True, timeout=100
        )

    process = command("--only", "nothing")
    assert process.returncode == 2 and "there is no nothing; there are yardsticks, masked_linear" in process.stderr
    process = command("--list")
    assert process.returncode == 0 and "peers_masked_conv2d" in process.stdout
    process = command("--list", "--only", "models")
    assert process.returncode == 0 and [line.split()[0] for line in process.stdout.splitlines()] == ["models"]
    process = command("--only", "models", "--folder", str(BENCH / "run.py" / "folder"))
    assert process.returncode == 1 and process.stderr.startswith("--folder ") and "Traceback" not in process.stderr


def test_help_of_a_benchmark_keeps_its_lines():
    command = [sys.executable, str(BENCH / "bench_compact.py"), "--help"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert process.returncode == 0 and "\n    packed    forward of both, packed\n" in process.stdout, process.stdout


@pytest.mark.slow
def test_quick(run, monkeypatch, tmp_path, capfd):
    """Benchmarks whose tables no committed result has yet."""
    names = ("yardsticks", "gated_linear", "compact", "mask_gradient", "allreduce", "microbench")
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    arguments = [word for name in names for word in ("--only", name)]
    assert run.main(["--quick", "--folder", str(tmp_path), *arguments]) == 0, capfd.readouterr()
    page = (tmp_path / "RESULTS.md").read_text()
    for name in names:
        if next(listed for listed in run.BENCHMARKS if listed.name == name).why_not():
            continue
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert all(value > 0 for row in rows for key, value in row.items() if key in ("maskfuse ms", "us", "hook ms"))
        assert f"bench/{name}.py --quick" in page or f"bench_{name}.py --quick" in page
