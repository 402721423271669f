"""README.md, bench/RESULTS.md and the pictures say what the committed JSON files say, and how a difference is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench_modules import BENCH, imported

pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="needs the repository around it")


@pytest.fixture
def readme(monkeypatch):
    yield from imported(monkeypatch, "readme")


def check(*arguments):
    command = [sys.executable, str(BENCH / "readme.py"), "--check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_what_is_committed_is_current():
    process = check()
    assert process.returncode == 0, process.stderr


@pytest.fixture
def results(tmp_path):
    """A copy of the committed JSON files, as another machine's folder."""
    for path in (BENCH / "results").glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_each_kind_of_difference_is_found(readme, results):
    assert set(readme.differences(results)) == {"RESULTS.md", "speed_up.svg", "roofline.svg"}
    readme.write(results)
    assert check("--folder", results).returncode == 0
    path = results / "masked_linear.json"
    content = json.loads(path.read_text())
    row = next(r for r in content["rows"] if (r["section"], r["out"], r["in"], r["batch"]) == ("grid", 4096, 4096, 512))
    row["vs dense"] += 1
    path.write_text(json.dumps(content))
    process = check("--folder", results)
    assert process.returncode == 1
    assert [line.split()[0] for line in process.stderr.splitlines()] == ["RESULTS.md", "speed_up.svg"]
    for path in results.glob("m*.json"):
        path.unlink()
    assert set(readme.differences(results)) == {"RESULTS.md", "speed_up.svg"}  # there are no points left for roofs
    assert len(readme.write(results)) == 2 and not readme.differences(results)


def test_a_missing_picture_is_found(readme, results):
    readme.write(results)
    (results / "roofline.svg").unlink()
    assert "roofline.svg" in readme.differences(results)


def test_readme_block(readme, tmp_path):
    (tmp_path / "bench").mkdir()
    text = (ROOT / "README.md").read_text()
    row = next(line for line in text.splitlines() if "measured by" not in line and "bench_masked_linear.py`" in line)
    (tmp_path / "README.md").write_text(text.replace(row, row.replace(".", ",", 1)))
    (tmp_path / "bench/RESULTS.md").write_text((BENCH / "RESULTS.md").read_text())
    assert readme.differences(readme.RESULTS, tmp_path) == ["README.md"]
    block = text[text.index(readme.START) : text.index(readme.END)].splitlines()[1:]
    assert len(block) <= 25
    assert readme.page(readme.load(readme.RESULTS), [], ["results/x/RESULTS.md"]).count("(results/x/RESULTS.md)") == 1
    for line in block[block.index("| --- | --- | --- | --- | --- | --- |") + 1 :]:
        assert "`python bench/" in line and "`, 20" in line  # its command and its date
    with pytest.raises(SystemExit, match=r"README\.md has no"):
        readme.with_block("no markers", [])


def test_figures_of_two_machines_are_not_mixed_silently(readme, results):
    from records import load
    from summary import summary

    assert not any("Processors differ" in line for line in summary(load(results)))
    path = results / "masked_conv2d.json"
    content = json.loads(path.read_text())
    content["machine"]["processor"] = "Another Processor"
    path.write_text(json.dumps(content))
    lines = summary(load(results))
    assert "Processors differ" in lines[0] and "B = Another Processor" in " ".join(lines)
    assert all(("on B" in line) == ("bench_masked_conv2d.py" in line) for line in lines if line.startswith("| `"))
    readme.write(results)
    page = (results / "RESULTS.md").read_text()
    assert "- B = Another Processor" in page and "`python bench/bench_masked_conv2d.py`, 2026" in page
    assert "machine B" in page[page.index("## Convolutions") :].splitlines()[2]


def test_pictures_are_small(readme):
    for path in (BENCH / "results").glob("*.svg"):
        assert path.stat().st_size < 150_000, path.name


@pytest.fixture
def records(monkeypatch):
    yield from imported(monkeypatch, "records")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_that_was_measured(tmp_path, records):
    """What a run has written so far does not make it a run of other code."""
    assert records.commit_of(tmp_path) == ""

    def git(*arguments):
        process = subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return process.stdout.strip()

    for name in ("bench/results/one.json", "bench/timing.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all")
    head = git("rev-parse", "--short", "HEAD")
    (tmp_path / "bench/results/one.json").write_text("after")
    (tmp_path / "README.md").write_text("after")
    (tmp_path / "notes").write_text("untracked")
    assert records.commit_of(tmp_path) == head
    (tmp_path / "bench/timing.py").write_text("after")
    assert records.commit_of(tmp_path) == head + "-dirty"
