"""The table that `gpu.py` prints last: short enough to be read where only the end of an output is kept."""

from __future__ import annotations

from typing import Any

from gpu_rows import Row

OURS = "maskfuse"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.{digits}g}"


def _lines(row: dict[str, Any], unit: str) -> list[list[str]]:
    """One line for each contender that has a target, or for the first one."""
    name = row["name"]
    if row["status"] != "measured":
        least = ", ".join(f"{target['least']}" for target in row["targets"])
        reason = " ".join(str(row.get("reason", "")).split())
        return [[name, "", "", "", "", least, f"{row['status'].upper()}: {reason[:70]}"]]
    ours = row["ms"][OURS]
    achieved = f"{_number(row['achieved'][OURS].get(unit))} {unit}"
    targets = row["targets"] or [{"against": next(other for other in row["ms"] if other != OURS), "least": None}]
    lines = []
    for target in targets:
        other = target["against"]
        least = "" if target["least"] is None else f"{target['least']} {'met' if target['met'] else 'MISSED'}"
        ratio = f"{row['ratios'][other]:.2f}"
        lines.append([name, other, _number(row["ms"][other]), _number(ours), ratio, least, achieved])
        name, achieved = "", ""
    return lines


def table(record: dict[str, Any], rows: list[Row]) -> str:
    units = {row.name: row.unit for row in rows}
    head = ["row", "against", "its ms", "ours ms", "ratio", "target", "achieved"]
    lines = [head, *(line for row in record["rows"] for line in _lines(row, units[row["name"]]))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]]).rstrip()
        for line in lines
    )


def summary(record: dict[str, Any]) -> str:
    targets = [target for row in record["rows"] for target in row["targets"]]
    measured = sum(target["met"] is not None for target in targets)
    states = [row["status"] for row in record["rows"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tests = record["tests"]
    counted = (
        f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped" if "passed" in tests else ""
    )
    tools = ", ".join(f"{run.get('tool', 'tools')} {run['status']}" for run in record["sanitizer"].get("runs", []))
    stick = ", ".join(f"{name} {_number(value)}" for name, value in record["yardsticks"].items())
    lines = [
        f"device: {record['device'].get('name')}{' (DRY RUN: no result)' if record['dry_run'] else ''}; {stick}",
        f"rows: {counts}; {sum(bool(t['met']) for t in targets)} of {measured} targets met, {len(targets)} in all",
        f"tests: {tests['status']}{': ' if counted else ''}{counted}",
        f"compute-sanitizer: {tools or record['sanitizer'].get('status', 'not run')}",
    ]
    lines += [f"FAILED {failure['test']}" for failure in tests.get("failures", [])[:12]]
    return "\n".join([*lines, *(f"PROBLEM: {' '.join(problem.split())[:300]}" for problem in record["problems"])])
