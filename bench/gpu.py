"""Everything that needs a GPU, in one command of under nine minutes, with one record of it: `make gpu`.

    install     the wheel (--wheel, or the newest of dist/) into a temporary folder; the package in place without one
    facts       device, driver, clocks, versions; what a large copy and a large bfloat16 product reach here
    self-test   the package's own, where it has one
    tests       those marked cuda, on that package
    sanitizer   compute-sanitizer on every op, small: memcheck and racecheck beside the tests, initcheck behind the rows
    rows        bench/gpu_rows.py: contenders in turn, medians; bench/gpu_timing.py says how time is taken

The record, bench/results/<gpu>.json, is written anew after every step. A part of a run (--only, --skip-tests)
is written to build/ instead. The exit status is 1 where a test failed, a result was wrong or a row failed; a missed
target is no failure. `--device cpu --output FILE` is a dry run of all this at toy sizes: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_benchmarks
import gpu_phases
import gpu_report
import gpu_sanitizer
import gpu_tests
from gpu_benchmarks import Benchmarks, Limits
from gpu_phases import ROOT, Place
from gpu_rows import Row, all_rows
from records import RESULTS, commit_of

# Shares of the whole time that a step may take; rows have what the others leave.
INSTALL, FACTS, SELF_TEST, TESTS, COMPILED = 0.10, 0.12, 0.08, 0.55, 0.20
WRITING = 5  # seconds kept for the end


class Run:
    """One run: its options, its record, and the step it is at."""

    def __init__(self, options: argparse.Namespace, rows: list[Row], place: Place) -> None:
        self.options = options
        self.rows = rows
        self.place = place
        self.started = time.monotonic()
        self.end = self.started + 60 * options.minutes - WRITING
        dry = options.device == "cpu"
        worker = gpu_benchmarks.worker_arguments(options.device, options.cases, options.budget, 3 if dry else 9)
        self.record: dict[str, Any] = {
            "command": " ".join(["python", "bench/gpu.py", *map(place.plain, sys.argv[1:])]),
            "date": datetime.date.today().isoformat(),
            "commit": options.commit or commit_of(),
            "dry_run": dry,
            "whole": not _partial(options),
            "device": {},
            "versions": {},
            "yardsticks": {},
            "self_test": None,
            "tests": {"status": "not run"},
            "sanitizer": {"status": "not run"},
            "rows": [],
            "seconds": {},
            "problems": [],
        }
        self.benchmarks = Benchmarks(rows, place, worker, self.save)

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def share(self, part: float) -> float:
        return min(self.left(), 60 * self.options.minutes * part)

    def output(self) -> Path:
        if self.options.output:
            return self.options.output
        name = re.sub(r"[^a-z0-9]+", "-", self.record["device"].get("name", "gpu").lower()).strip("-")
        return (RESULTS if self.record["whole"] else ROOT / "build") / f"{name}.json"

    def save(self) -> None:
        self.record["rows"] = self.benchmarks.record()
        path = self.output()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record, indent=1) + "\n")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Takes time and catches what goes wrong, so that the steps behind it are reached."""
        print(f"gpu: {name} ({self.left():.0f} s left)", flush=True)
        begun = time.monotonic()
        try:
            yield
        except Exception as error:
            self.problem(f"{name}: {type(error).__name__}: {error}")
        spent = self.record["seconds"]
        spent[name] = round(spent.get(name, 0) + time.monotonic() - begun, 1)
        if self.record["device"]:  # before that the record has no name
            self.save()

    def problem(self, *found: str) -> None:
        self.record["problems"] += map(self.place.plain, found)

    def install(self) -> bool:
        """False where that failed: what is found instead would be another package than the one asked for."""
        with self.step("install"):
            wheel = None if self.options.in_place else gpu_phases.newest_wheel(self.options.wheel)
            self.place, found = gpu_phases.install(wheel, self.place, self.share(INSTALL))
            self.problem(*found.pop("problems"))
            self.record["versions"] = found
        self.benchmarks.use(self.place)
        return not self.record["problems"]

    def facts(self) -> bool:
        """False where there is no GPU, so that nothing can be measured."""
        found: dict[str, Any] = {}
        with self.step("facts"):
            found = gpu_phases.facts(self.place, self.options.device, self.share(FACTS), self.options.budget)
            self.problem(*found.pop("problems"))
        self.record["versions"] |= found.get("versions", {})
        self.record["yardsticks"] = found.get("yardsticks", {})
        self.record["device"] = found.get("device", {"name": "gpu"})
        self.record["whole"] &= "device" in found  # a result without a device is nobody's
        if self.options.device == "cuda":
            self.record["device"]["before"] = gpu_phases.nvidia_smi(self.place)
        return self.options.device == "cpu" or found.get("gpu", True)

    def self_test(self) -> None:
        if self.options.skip_tests:
            return
        with self.step("self-test"):
            self.record["self_test"], found = gpu_phases.self_test(self.place, self.share(SELF_TEST))
            self.problem(*found)

    def tests(self) -> None:
        if self.options.skip_tests:
            self.record["tests"] = {"status": "not run: not asked for"}
            return
        found = gpu_tests.tests(self.place, ROOT / "tests", self.share(TESTS))
        self.problem(*found.pop("problems"))
        self.record["tests"] = found
        if self.options.device == "cuda" and found.get("passed") == 0:
            self.problem("no test passed on this device: see what is skipped, and why")

    def sanitizer(self, tools: tuple[str, ...], most: float) -> None:
        if self.options.skip_tests or self.options.device == "cpu":
            self.record["sanitizer"] = {"status": "not run: not asked for"}
            return
        binary = gpu_sanitizer.find_sanitizer()
        for tool in tools:
            found = gpu_sanitizer.sanitizer(self.place, binary, tool, self.share(most))
            self.problem(*found.pop("problems"))
            runs = [*self.record["sanitizer"].get("runs", []), {"tool": tool, **found}]
            self.record["sanitizer"] = {"status": "run" if binary else found["status"], "runs": runs}

    def checks(self) -> None:
        """Tests, and beside them what is far slower than they: neither takes time."""
        with self.step("tests and sanitizer"), ThreadPoolExecutor() as pool:
            tools = pool.submit(self.sanitizer, gpu_sanitizer.TOOLS[:2], TESTS)
            self.tests()
            tools.result()

    def measure(self) -> None:
        wanted = self.options.only.split(",") if self.options.only else None
        asked = [row for row in self.rows if wanted is None or row.group in wanted]
        for row in self.rows:
            if row not in asked:
                self.benchmarks.note(row.name, {"status": "not measured", "reason": "not asked for"})
        compiled = [row for row in asked if row.compiles]
        kept = self.share(COMPILED) if compiled else 0.0
        with self.step("rows"):
            limits = Limits(self.end - kept, min(60, 60 * self.options.minutes / 4))
            self.benchmarks.measure([row for row in asked if not row.compiles], limits)
        with self.step("rows that compile"):
            each = self.left() / 2 if len(compiled) > 1 else self.left()
            self.benchmarks.measure(compiled, Limits(self.end, max(each, 20), hang_is_failure=False))
        if self.options.device == "cuda":
            self.record["device"]["after"] = gpu_phases.nvidia_smi(self.place)
        self.problem(*gpu_benchmarks.problems(self.benchmarks.record()))

    def everything(self) -> int:
        if not self.install():
            self.record |= {"device": {"name": "gpu"}, "whole": False}
            return self.finish()
        if not self.facts():
            print("gpu: torch sees no GPU here; `--device cpu --output FILE` is a dry run without one", file=sys.stderr)
            return 2
        self.self_test()
        self.checks()
        self.measure()
        with self.step("initcheck"):
            self.sanitizer(gpu_sanitizer.TOOLS[2:], 1.0)
        return self.finish()

    def finish(self) -> int:
        """Writes the record, prints what it says, and returns the exit status."""
        self.record["seconds"]["all"] = round(time.monotonic() - self.started, 1)
        self.save()
        print(gpu_report.table(self.record, self.rows))
        print(gpu_report.summary(self.record))
        print(f"{self.record['seconds']['all']:.0f} s; written to {self.place.plain(str(self.output()))}")
        return 1 if self.record["problems"] else 0


def _partial(options: argparse.Namespace) -> bool:
    return bool(options.only or options.skip_tests or options.cases or options.device == "cpu")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="wheel to install (the newest of dist/, else the package in place)")
    parser.add_argument("--in-place", action="store_true", help="the package in place, whatever dist/ has")
    parser.add_argument("--output", type=Path, help="JSON file (bench/results/<gpu>.json)")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything (8.5)")
    parser.add_argument("--only", metavar="GROUPS", help="groups of rows, with commas between them")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--skip-tests", action="store_true", help="no self-test, tests or compute-sanitizer")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a dry run")
    parser.add_argument("--cases", type=Path, help="a Python file with ROWS of its own, which are measured too")
    parser.add_argument("--commit", help="what to put on record as the commit, where there is no git repository")
    parser.add_argument("--logs", type=Path, help="folder for the whole logs of all steps")
    options = parser.parse_args()
    options.budget = 0.02 if options.device == "cpu" else 0.2 if options.quick else 1.0
    if options.device == "cpu" and (options.output is None or RESULTS in options.output.resolve().parents):
        parser.error("a dry run is no result: name an --output outside of bench/results")
    if options.only:
        known = {row.group for row in all_rows(options.cases)}
        unknown = set(options.only.split(",")) - known
        if unknown:
            parser.error(f"--only: no group {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return options


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt  # so that child processes are ended and the folder is removed


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, _terminate)
    with tempfile.TemporaryDirectory(prefix="maskfuse-gpu-") as folder:
        place = gpu_phases.place_for(Path(folder))
        try:
            return Run(options, all_rows(options.cases), place).everything()
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in Path(folder).glob("*.log"):
                    shutil.copy(log, options.logs)


if __name__ == "__main__":
    raise SystemExit(main())
