"""Every benchmark that this machine can run, one process each, and the pages written from their results: `make bench`.

    python bench/run.py                     # all; about half an hour on two cores
    python bench/run.py --only masked_conv2d --only models
    python bench/run.py --quick             # few cases, one round, into build/bench: a test that all of it runs
    python bench/run.py --list

A benchmark that fails does not stop the others; the exit status is then 1. One that cannot run here is said to be
absent, and why. Results of the machine that the committed ones are of go into bench/results, those of any other machine
into a folder of their own, with pages of their own: figures of two machines are not mixed. What a benchmark printed is
in build/bench/logs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import BENCHMARKS, Benchmark
from maskfuse._processor import processor
from records import RESULTS, ROOT, load, machine_of, on_gpu

QUICK_FOLDER = ROOT / "build/bench"
LOGS = QUICK_FOLDER / "logs"
MOST_SECONDS = 1800  # one benchmark


@dataclass(frozen=True)
class Outcome:
    """`state` is ok, FAILED or absent."""

    name: str
    state: str
    seconds: float
    detail: str


def folder_for(committed: Path, facts: dict) -> Path:
    """Where this machine's results go: among the committed ones, or where these are another's, into a folder of its
    own."""
    theirs = {machine_of(result) for result in load(committed).values() if not on_gpu(result)}
    if not theirs or machine_of({"machine": facts}) in theirs:
        return committed
    slug = re.sub(r"[^a-z0-9]+", "-", str(facts["processor"]).lower()).strip("-") or "processor"
    return committed / f"{slug}-{facts['processors']}"


def run(benchmark: Benchmark, folder: Path, quick: bool) -> Outcome:
    """One benchmark in a process of its own, what it prints into its log."""
    reason = benchmark.why_not()
    if reason:
        return Outcome(benchmark.name, "absent", 0.0, reason)
    output = folder / f"{benchmark.name}.json"
    before = output.stat().st_mtime_ns if output.exists() else None
    command = benchmark.arguments(output, quick)
    log = LOGS / f"{benchmark.name}.log"
    began = time.monotonic()
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env=benchmark.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=MOST_SECONDS,
            ).returncode
            problem = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"not done after {MOST_SECONDS} s"
        except OSError as error:
            problem = str(error)
    if not problem and (not output.exists() or output.stat().st_mtime_ns == before):
        problem = f"wrote no {output.name}"
    seconds = time.monotonic() - began
    return Outcome(benchmark.name, "FAILED" if problem else "ok", seconds, f"{problem}; {log}" if problem else "")


@contextmanager
def shown(count: int) -> Iterator:
    """Something with `advance(name)`: a bar where a person looks on, nothing elsewhere, where lines are printed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    quiet = {"disable": not console.is_terminal, "redirect_stdout": sys.stdout.isatty()}
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, **quiet) as bar:
        task = bar.add_task("", total=count)
        yield lambda name, done: bar.update(task, description=name, completed=done)


def line(outcome: Outcome) -> str:
    return f"{outcome.state:<7} {outcome.name:<24} {outcome.seconds:6.0f} s  {outcome.detail}".rstrip()


def last_lines(name: str, count: int = 8) -> str:
    text = (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
    return "\n".join(f"        {entry}" for entry in text[-count:])


def everything(chosen: list[Benchmark], folder: Path, quick: bool) -> list[Outcome]:
    outcomes = []
    LOGS.mkdir(parents=True, exist_ok=True)
    with shown(len(chosen)) as advance:
        for done, benchmark in enumerate(chosen):
            advance(benchmark.name, done)
            outcomes.append(run(benchmark, folder, quick))
            print(line(outcomes[-1]), flush=True)
            if outcomes[-1].state == "FAILED":
                print(last_lines(benchmark.name), flush=True)
    return outcomes


def pages(folder: Path) -> int:
    """Tables and pictures of what the folder now holds."""
    return subprocess.run([sys.executable, "bench/readme.py", "--folder", str(folder)], cwd=ROOT).returncode


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases, one round, into build/bench")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one alone; may be repeated")
    parser.add_argument("--folder", type=Path, help="for the JSON files (chosen by the machine)")
    parser.add_argument("--list", action="store_true", help="print what there is")
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - {benchmark.name for benchmark in BENCHMARKS}
    if unknown:
        names = ", ".join(benchmark.name for benchmark in BENCHMARKS)
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {names}")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    chosen = [b for b in BENCHMARKS if not options.only or b.name in options.only]
    if options.list:
        for benchmark in chosen:
            print(f"{benchmark.name:<24} {benchmark.what:<52} {benchmark.why_not()}".rstrip())
        return 0
    folder = options.folder or (QUICK_FOLDER if options.quick else folder_for(RESULTS, processor()))
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--folder {folder}: {error.strerror}", file=sys.stderr)
        return 1
    outcomes = everything(chosen, folder, options.quick)
    failed = [outcome.name for outcome in outcomes if outcome.state == "FAILED"]
    ran = [outcome for outcome in outcomes if outcome.state == "ok"]
    if ran and pages(folder):
        failed.append("the pages")
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(ran)} of {len(outcomes)} benchmarks ran, in {seconds / 60:.1f} minutes; results in {folder}")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("interrupted: what had been measured is written, the pages are not", file=sys.stderr)
        raise SystemExit(130) from None
