"""Writes python/maskfuse/gpu_passes.json, the device models on which this version's kernels have passed their
self-test, from bench/results/*.json: `python bench/gpu_passes.py`.

A result counts where it has `self_test` (what `maskfuse.self_test().as_dict()` gives) of an installed version, and
`commit`, since which no source of a kernel has changed. `--run` makes such a result on this machine first. `--check`
writes nothing, and exits with 1 where the file is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
RECORD = ROOT / "python/maskfuse/gpu_passes.json"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def unchanged_since(commit: str) -> bool:
    """Whether the kernels' sources are those of a commit, which says itself where it was not clean."""
    return (
        bool(commit) and not commit.endswith("-dirty") and _git("diff", "--quiet", commit, "--", "csrc").returncode == 0
    )


def passes(folder: Path) -> tuple[list[dict], list[str]]:
    """The record's entries, and why results with a self-test do not count."""
    found: dict[tuple[str, str], dict[str, bool]] = {}
    refused = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        test = content.get("self_test") if isinstance(content, dict) else None
        if not test:
            continue
        if test["version"] == "in place":
            refused.append(f"{path.name}: of a build in place, which has no version")
        elif not unchanged_since(content.get("commit", "")):
            refused.append(f"{path.name}: csrc is not what it was, or not known to be")
        else:
            for outcome in test["outcomes"]:
                place, _, model = outcome["device"].partition(" ")
                if place.startswith("cuda"):
                    checks = found.setdefault((test["version"], model), {})
                    checks[outcome["check"]] = outcome["passed"] and checks.get(outcome["check"], True)
    entries = [
        {"version": version, "device": model, "checks": sorted(name for name, passed in checks.items() if passed)}
        for (version, model), checks in sorted(found.items())
    ]
    return entries, refused


def run() -> int:
    """Writes a result of this machine's CUDA devices; returns the exit status."""
    import maskfuse
    import torch

    test = maskfuse.self_test("cuda")
    print(test)
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    dirty = "-dirty" if _git("status", "--porcelain", "--", "csrc").stdout else ""
    content = {
        "command": "python bench/gpu_passes.py --run",
        "commit": _git("rev-parse", "--short", "HEAD").stdout.strip() + dirty,
        "self_test": test.as_dict(),
    }
    (RESULTS / f"self_test_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0 if test.passed else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="test this machine's devices first")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file is out of date")
    options = parser.parse_args()
    status = run() if options.run else 0
    entries, refused = passes(RESULTS)
    text = json.dumps(entries, indent=1) + "\n"
    for line in refused:
        print(f"not counted: {line}")
    if options.check:
        if not RECORD.exists() or RECORD.read_text() != text:
            print(f"{RECORD.relative_to(ROOT)} is out of date: run python bench/gpu_passes.py")
            return 1
        return status
    RECORD.write_text(text)
    print(f"{sum(len(entry['checks']) for entry in entries)} passes on {len(entries)} device models, {RECORD.name}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
