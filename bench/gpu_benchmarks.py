"""Has the rows measured: starts workers, and watches that no row takes the others' time or takes them down."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_phases import BENCH, TRUST, Place
from gpu_process import TAIL, Child
from gpu_rows import Row

STARTING = 90  # seconds that a worker has before its first row
BUDGET = {"status": "not measured", "reason": "budget"}


@dataclass(frozen=True)
class Limits:
    """Moments of `time.monotonic()` at which rows end, and seconds that one row may take."""

    end: float
    row_seconds: float
    hang_is_failure: bool = True  # else a row that takes too long is one that there was no time for


class Benchmarks:
    """The record of all rows, and what fills it."""

    def __init__(self, rows: list[Row], place: Place, worker: list[str], save: Callable[[], None]) -> None:
        self.rows = rows
        self.found: dict[str, dict[str, Any]] = {}
        self._place = place
        self._worker = worker
        self._save = save

    def use(self, place: Place) -> None:
        """Where the workers run from now on."""
        self._place = place

    def note(self, name: str, result: dict[str, Any]) -> None:
        if isinstance(result.get("reason"), str):
            result["reason"] = self._place.plain(result["reason"])
        self.found[name] = result
        self._save()

    def measure(self, rows: list[Row], limits: Limits) -> None:
        """Fills the record for these rows."""
        left = [row.name for row in rows]
        while left and time.monotonic() < limits.end - 5:
            known = set(self.found)
            self._run(left, limits)
            left = [name for name in left if name not in self.found]
            if known == set(self.found):
                break
        for name in left:
            self.note(name, dict(BUDGET))

    def _run(self, names: list[str], limits: Limits) -> None:
        """One worker, until it ends or is ended; the row it was at when it ended early is on record as failed."""
        record, log = self._place.folder / "rows.jsonl", self._place.log("rows")
        record.unlink(missing_ok=True)
        begun = log.stat().st_size if log.exists() else 0
        command = [sys.executable, str(BENCH / "gpu_worker.py"), "--record", str(record), *self._worker, "--", *names]
        child = Child(command, log, {**self._place.env, **TRUST}, self._place.folder)
        current, since, read = None, time.monotonic(), 0
        why = ""
        try:
            running = True
            while running:
                running = child.poll() is None  # asked before the record is read, so that no last line is missed
                lines = record.read_text().splitlines(keepends=True) if record.exists() else []
                for line in [line for line in lines if line.endswith("\n")][read:]:
                    entry, read = json.loads(line), read + 1
                    since = time.monotonic()
                    current = entry.get("start")
                    if "row" in entry:
                        self.note(entry["row"].pop("name"), entry["row"])
                now = time.monotonic()
                if running and now > limits.end:
                    why = "budget"
                elif running and now - since > (limits.row_seconds if read else max(STARTING, limits.row_seconds)):
                    why = "hung"
                if why:
                    break
                time.sleep(0.02)
        finally:
            child.end()
        output = log.read_bytes()[begun:].decode(errors="replace")[-TAIL:].strip()
        if why == "budget":
            return  # whoever called notes what is left
        if read == 0:  # it never came to a row, and would not the next time
            for name in names:
                self.note(name, {"status": "failed", "reason": f"no worker: {output}"})
        elif current is not None and why == "hung":
            reason = f"no result in {limits.row_seconds:.0f} s"
            hang = {"status": "failed", "reason": reason}
            self.note(current, hang if limits.hang_is_failure else {**BUDGET, "reason": f"budget: {reason}"})
        elif current is not None:
            self.note(current, {"status": "failed", "reason": f"the process ended with {child.poll()}: {output}"})

    def record(self) -> list[dict[str, Any]]:
        """All rows in their order, with targets, whatever became of them."""
        return [self._line(row) for row in self.rows]

    def _line(self, row: Row) -> dict[str, Any]:
        result = dict(self.found.get(row.name, {"status": "not measured", "reason": "not reached"}))
        found = {entry.pop("against"): entry for entry in map(dict, result.pop("found", []))}
        targets = [
            {
                "against": t.against,
                "least": t.least,
                "limit": t.limit,
                **found.get(t.against, {"measured": None, "met": None}),
            }
            for t in row.targets
        ]
        return {"name": row.name, "group": row.group, **result, "targets": targets}


def problems(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['name']}: {row['status']}: {row['reason']}" for row in rows if row["status"] in ("failed", "wrong")]


def worker_arguments(device: str, cases: Path | None, budget: float, min_rounds: int) -> list[str]:
    arguments = ["--device", device, "--budget", str(budget), "--min-rounds", str(min_rounds)]
    return [*arguments, *(["--cases", str(cases.resolve())] if cases else [])]
