"""Measures rows, in a process of its own: `gpu.py` starts it, and again behind a row that ended it.

Each line of the record is one JSON object: {"start": name} before a row, {"row": {...}} behind it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_calls import OURS, Calls, NotThereYet, Setting, Work, judge, poison, tensors
from gpu_rows import Row, all_rows
from gpu_timing import Clock, Measured, clock_of, compare
from maskfuse._timing import ratio

DEVICE_LOST = 3  # exit status: an error that no later call on this device survives


def _make(row: Row) -> Callable[[Setting], Calls]:
    module, _, function = row.calls.partition(":")
    build = getattr(importlib.import_module(module), function)
    return lambda setting: build(setting, **row.options)


def _check(calls: Calls) -> tuple[dict[str, Any], list[str]]:
    """Errors of every contender, and what is wrong: a result, or ours when it does not give the same bits again."""
    want, first = calls.expected(), calls.run[OURS]()
    errors, wrong = {}, []
    for name, call in calls.run.items():
        if name in calls.unlike:
            continue
        poison(first)
        got = call()
        verdict = judge(got, want, calls.exact)
        errors[name] = {"norm": verdict.norm, "worst": verdict.worst}
        errors[name] |= {"norm at most": verdict.norm_bound, "worst at most": verdict.worst_bound}
        if not verdict.right:
            wrong.append(f"{name} is wrong: error {verdict.norm:.3g} in norm, {verdict.worst:.3g} at worst")
        if name == OURS and not all(map(torch.equal, tensors(got), tensors(first))):
            wrong.append(f"{name} does not give the same bits again")
    return errors, wrong


def _achieved(work: Work, seconds: float) -> dict[str, float]:
    result = {"TB/s": work.bytes / seconds / 1e12}
    return result | ({"TFLOP/s": work.flop / seconds / 1e12} if work.flop else {})


def _targets(row: Row, times: dict[str, Measured]) -> list[dict[str, Any]]:
    found = []
    for target in row.targets:
        measured = ratio(times[target.against].timing, times[OURS].timing)
        found.append({"against": target.against, "measured": measured, "met": measured >= target.least})
    return found


def measure(row: Row, setting: Setting, clock: Clock, budget: float, min_rounds: int) -> dict[str, Any]:
    """One row of the result: checked, then timed. Raises NotThereYet where there is nothing to time."""
    make = _make(row)
    calls = make(setting)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):  # where ours leaves a product to it
        errors, wrong = _check(calls)
    record = {**calls.about, "errors": errors}
    if wrong:
        return {"status": "wrong", "reason": "; ".join(wrong), **record}
    count = clock.sets(min(work.bytes for work in calls.work.values()))
    sets = [calls, *(make(setting) for _ in range(count - 1))]
    times = compare(clock, {name: [one.run[name] for one in sets] for name in calls.run}, budget, min_rounds)
    medians = {name: measured.timing.median for name, measured in times.items()}
    return {
        "status": "measured",
        "ms": {name: seconds * 1e3 for name, seconds in medians.items()},
        "ratios": {name: ratio(times[name].timing, times[OURS].timing) for name in times if name != OURS},
        "achieved": {name: _achieved(calls.work[name], seconds) for name, seconds in medians.items()},
        "spread": {name: measured.timing.spread for name, measured in times.items()},
        "rounds": len(times[OURS].timing.rounds),
        "sets of operands": count,
        "timed": {name: measured.how for name, measured in times.items()},
        "found": _targets(row, times),
        **record,
    }


def _device_lives(setting: Setting) -> bool:
    if setting.device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(8, device="cuda").sum() == 8)
    except RuntimeError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--min-rounds", type=int, default=9)
    parser.add_argument("rows", nargs="+")
    options = parser.parse_args()
    rows = {row.name: row for row in all_rows(options.cases)}
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the fastest that it has, as convolutions on images of one size are run
    setting = Setting(options.device)
    clock = clock_of(setting.device)

    def note(**line: Any) -> None:
        with options.record.open("a") as record:
            record.write(json.dumps(line) + "\n")

    for name in options.rows:
        note(start=name)
        try:
            result = measure(rows[name], setting, clock, options.budget, options.min_rounds)
        except NotThereYet as error:
            result = {"status": "not there yet", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = (str(error).strip() or type(error).__name__)[:2000]
            where = f"{Path(last.filename).name}:{last.lineno}"
            result = {"status": "failed", "reason": f"{type(error).__name__}: {text} ({where})"}
        lives = _device_lives(setting)
        note(row={"name": name, **_plain(result)})
        if not lives:
            return DEVICE_LOST
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


def _plain(value: Any) -> Any:
    """The value as JSON can say it: NaN and infinity as words."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
