"""The share of lines that tests run, Python's and C++'s: build/coverage/{index.html,summary.json}.

Fails below the limits. `make coverage` has left the counts of both; what is not counted, and why, is in pyproject.toml.
"""

from __future__ import annotations

import json
import subprocess
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/coverage"
LIMITS = {"python": 95.0, "c++": 90.0}  # percent of lines


def run(tool: str, *arguments: str) -> None:
    """Its warnings, of counts that threads share, are for a log, unless it fails."""
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    (FOLDER / f"{tool}.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise SystemExit(f"{tool} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def python_lines() -> dict[str, object]:
    run("coverage", "html", "--quiet", "--directory", str(FOLDER / "python/html"))
    run("coverage", "json", "--quiet", "-o", str(FOLDER / "python/report.json"))
    report = json.loads((FOLDER / "python/report.json").read_text())
    files = {
        name: (f["summary"]["covered_lines"], f["summary"]["num_statements"]) for name, f in report["files"].items()
    }
    return section("python", files, "python/html/index.html")


def cpp_lines(*objects: str) -> dict[str, object]:
    (FOLDER / "c++").mkdir(exist_ok=True)
    reports = ["--json-summary", str(FOLDER / "c++/report.json"), "--html-details", str(FOLDER / "c++/index.html")]
    run("gcovr", "--root", ".", *reports, *objects)
    report = json.loads((FOLDER / "c++/report.json").read_text())
    files = {f["filename"]: (f["line_covered"], f["line_total"]) for f in report["files"]}
    return section("c++", files, "c++/index.html")


def section(language: str, files: dict[str, tuple[int, int]], details: str) -> dict[str, object]:
    covered, total = (sum(counts) for counts in zip(*files.values(), strict=True))
    percent = {name: round(100 * f[0] / f[1], 2) for name, f in files.items() if f[1]}
    return {
        "covered": covered,
        "lines": total,
        "percent": round(100 * covered / total, 2),
        "least": LIMITS[language],
        "details": details,
        "files": dict(sorted(percent.items(), key=lambda item: item[1])),
    }


def page(summary: dict[str, dict]) -> str:
    parts = ["<!doctype html><meta charset=utf-8><title>maskfuse: lines that tests run</title>"]
    for language, s in summary.items():
        rows = "".join(f"<tr><td>{escape(name)}<td align=right>{percent}" for name, percent in s["files"].items())
        parts.append(
            f"<h2><a href='{s['details']}'>{language}</a>: {s['percent']} % of {s['lines']} lines"
            f" (at least {s['least']} %)</h2><table>{rows}</table>"
        )
    return "\n".join(parts)


def main(objects: list[str]) -> int:
    summary = {"python": python_lines(), "c++": cpp_lines(*objects)}
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=1))
    (FOLDER / "index.html").write_text(page(summary))
    for language, s in summary.items():
        print(f"{language}: {s['percent']} % of {s['lines']} lines, at least {s['least']} % wanted")
    return int(any(s["percent"] < s["least"] for s in summary.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
