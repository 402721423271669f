"""The one timing harness. Import it before torch: it pins the threads through the environment.

Times come from `maskfuse._timing` (alternating rounds, medians, spread); this adds the pinning, the record of the
machine, the JSON file and the table. `python bench/bench_*.py --help` shows the common options.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_PLACES", "cores")

import maskfuse
import torch
from maskfuse import _timing
from maskfuse._processor import last_cache, processor
from maskfuse._timing import Timing, ratio
from records import RESULTS, commit_of

__all__ = [
    "Timing",
    "arguments",
    "compare",
    "last_cache",
    "listed",
    "machine",
    "measured",
    "parsed",
    "pin",
    "progress",
    "ratio",
    "report",
    "table",
    "verdicts",
    "write",
]


MOST_ROUNDS = 201
_most_rounds = MOST_ROUNDS


def arguments(description: str, quick: str = "") -> argparse.ArgumentParser:
    """Options of every benchmark: threads, time a case, output file, and a check of the targets; and
    `--quick`, where `quick` says which cases it takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads (2)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a case (1)")
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS, help=f"at most so many a case ({MOST_ROUNDS})")
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, help="JSON file (bench/results/<benchmark>.json)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options, with threads pinned, the rounds of `compare` limited and random numbers fixed."""
    global _most_rounds
    options = parser.parse_args()
    if options.threads < 1 or options.rounds < 1 or options.budget < 0:
        parser.error("--threads and --rounds must be positive, --budget not negative")
    _most_rounds = options.rounds
    pin(options.threads)
    torch.manual_seed(0)
    return options


def compare(
    candidates: Mapping[str, Callable[[], object]], budget: float = 1.0, min_rounds: int = 9
) -> dict[str, Timing]:
    """`maskfuse._timing.compare`, in no more rounds than `--rounds` says."""
    return _timing.compare(candidates, budget, min(min_rounds, _most_rounds), _most_rounds)


def measured(times: Mapping[str, Timing], unit: str = "ms") -> dict[str, float]:
    """Medians in ms (or us) of every contender, how many times faster maskfuse is than each other, and its spread."""
    ours, found = times["maskfuse"], {}
    for name, timed in times.items():
        found[f"{name} {unit}"] = timed.median * {"ms": 1e3, "us": 1e6}[unit]
        if name != "maskfuse":
            found[f"vs {name}"] = ratio(timed, ours)
    return found | {"spread": ours.spread}


def pin(threads: int) -> None:
    """Uses `threads` threads, each bound to a core of its own by the environment set above, and keeps freed memory."""
    if threads > (os.cpu_count() or 1):
        raise SystemExit(f"--threads {threads}: this machine has {os.cpu_count()} processors")
    torch.set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tells glibc to give no memory back to the system.

    Else a contender pays for the page faults of what another one freed: a fifth of a convolution's time, and which of
    the contenders pays depends on their order.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def machine() -> dict:
    """What a figure depends on: processor, caches, versions, commit, threads, load."""
    info = maskfuse.build_info()
    return {
        **processor(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": info["compiler"],
        "cpu_level": info["cpu_level"],
        "commit": commit_of(),
        "date": datetime.date.today().isoformat(),
    }


def _command() -> str:
    """What was typed, but for where the result goes."""
    words = [word for i, word in enumerate(sys.argv) if word != "--output" and sys.argv[max(i - 1, 0)] != "--output"]
    return " ".join(["python", *words])


def write(name: str, rows: list[dict], output: Path | None, **summary: object) -> Path:
    """Writes machine, summary and rows as JSON; returns the path."""
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "command": _command(), "machine": machine(), **summary}
    path.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n")
    return path


def verdicts(checked: list[tuple[str, float, float]]) -> list[dict]:
    """Targets as the JSON has them, from (what, measured, at least); a negative bound means at most."""
    return [
        {
            "what": what,
            "measured": measured,
            "bound": abs(bound),
            "at": "least" if bound > 0 else "most",
            "met": measured >= bound if bound > 0 else measured <= -bound,
        }
        for what, measured, bound in checked
    ]


def report(lines: list[dict], path: Path, check: bool) -> int:
    """Prints every target with its figure; returns the exit status, 1 where `check` finds one missed."""
    for line in lines:
        sign = ">=" if line["at"] == "least" else "<="
        verdict = "met   " if line["met"] else "MISSED"
        print(f"{verdict} {line['measured']:7.2f} {sign} {line['bound']:.2f}  {line['what']}")
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} targets met; written to {path}")
    return int(check and not all(line["met"] for line in lines))


def listed(name: str, rows: list[dict], options: argparse.Namespace, **summary: object) -> int:
    """Prints and writes rows of a case, its section, medians and ratios, without targets; returns the exit status."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {"case": "s", "section": "s"} | {key: ".3f" for key in keys if key.endswith(" ms")}
    columns |= {key: ".2f" for key in keys if key.startswith("vs ")} | {"spread": ".0%"}
    table(f"{name}, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    print(f"written to {write(name, rows, options.output, dtype='float32', **summary)}")
    return 0


def progress(cases: list) -> Iterator:
    """The cases, with a bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(track(cases, "measuring", console=console, disable=not console.is_terminal))


def table(title: str, rows: list[dict], columns: dict[str, str]) -> None:
    """Prints rows; `columns` maps a key to the format of its value."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title)
    for key in columns:
        view.add_column(key, justify="right")
    for row in rows:
        view.add_row(*[format(row[key], form) if row.get(key) is not None else "" for key, form in columns.items()])
    Console(width=max(140, Console().width)).print(view)
