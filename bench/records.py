"""The results of benchmarks as tables, plots and the README read them: JSON files of one folder, and whose they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
WRITTEN = ("bench/results", "bench/RESULTS.md", "README.md")  # by `make bench`, between one benchmark and the next


def commit_of(root: Path = ROOT) -> str:
    """The commit that is measured, "-dirty" where more than results differs from it; empty without a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    head, changes = (
        subprocess.run([git, *arguments], cwd=root, capture_output=True, text=True).stdout.strip()
        for arguments in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN)),
        )
    )
    return head + "-dirty" * bool(head and changes)


def load(folder: Path) -> dict[str, dict]:
    """Name of the file -> what it holds, of all results in a folder."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def on_gpu(result: dict) -> bool:
    """Whether it is a record of bench/gpu.py."""
    return "device" in result and "machine" not in result


def machine_of(result: dict) -> str:
    """What tells one machine from another: the processor, how many of it, and its caches; or the GPU."""
    if on_gpu(result):
        return str(result["device"]["name"])
    info = result["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in info["caches"].items())
    return f"{info['processor']} ({info['processors']} virtual processors{', ' if caches else ''}{caches})"


def command_of(result: dict) -> str:
    """What was typed, without where its files went."""
    return str(result["command"]).split(" --commit")[0].split(" --output")[0]


def date_of(result: dict) -> str:
    return str(result["date"] if on_gpu(result) else result["machine"]["date"])


def conditions(result: dict) -> str:
    """Threads, instruction set and torch of a result on a processor."""
    info = result["machine"]
    threads = f"{info['threads']} thread{'s' if info['threads'] != 1 else ''}"
    return f"{threads}, {info['cpu_level']}, torch {info['torch']}, {result.get('dtype', 'float32')}"


def source(result: dict, label: str = "") -> str:
    """Command, date, machine (or the label that stands for it) and conditions."""
    return f"`{command_of(result)}`, {date_of(result)}: {label or machine_of(result)}, {conditions(result)}"


def machines(results: dict[str, dict]) -> dict[str, str]:
    """Machine -> its label: A, B, ... in the order in which they are met, GPUs last."""
    found = dict.fromkeys(machine_of(r) for r in sorted(results.values(), key=on_gpu))
    return {machine: chr(ord("A") + i) for i, machine in enumerate(found)}


def met(result: dict) -> str:
    """How many of a result's targets are met."""
    targets = result.get("targets", [])
    return f"{sum(t['met'] for t in targets)} of {len(targets)}"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """In Markdown."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]
