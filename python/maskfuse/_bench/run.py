"""Measures the cases of this machine, one behind another."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .. import _timing
from .._processor import processor
from ..info import build_info
from .cases import Case, Place, cases

BUDGET = {True: 0.25, False: 1.0}  # seconds a case, by whether it is to be quick


def place_of(device: str) -> Place:
    """Operands of float32 on the CPU, of bfloat16 on a GPU, whose tensor cores the kernels use.

    Raises:
        ValueError: a device that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        why = f"torch {torch.__version__} has no CUDA" if torch.version.cuda is None else "torch sees no GPU"
        raise ValueError(f"--device cuda: {why}")
    return Place(torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32)


def _ending(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A call that has ended when it returns."""
    if device.type != "cuda":
        return call

    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run


def _row(case: Case, place: Place, quick: bool) -> dict[str, Any]:
    calls = {name: _ending(call, place.device) for name, call in case.calls().items()}
    with torch.set_grad_enabled(case.op.endswith("step")):
        times = _timing.compare(calls, BUDGET[quick], min_rounds=5)
    row: dict[str, Any] = {"op": case.op, "shape": case.shape, "mask": case.mask, "density": case.density}
    row |= {f"{name} ms": timing.median * 1e3 for name, timing in times.items()}
    for name in ("dense", "w*m"):
        ratios = _timing.ratios(times[name], times["maskfuse"])
        row[f"vs {name}"] = _timing.ratio(times[name], times["maskfuse"])
        row[f"vs {name}, quartiles"] = list(_timing.quartiles(ratios))
    return row


def measure(
    device: str, threads: int | None, quick: bool, shown: Callable[[list[Case]], Iterable[Case]] = iter
) -> dict[str, Any]:
    """Plain values, ready for JSON: what the figures depend on, and `rows`.

    Args:
        device: `"cpu"` or `"cuda"`.
        threads: of the CPU; None for torch's own number.
        quick: few cases, less time for each.
        shown: passes the cases on, one by one, and may show how far they are.

    Raises:
        ValueError: a device that is not there.
    """
    place = place_of(device)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rows = [_row(case, place, quick) for case in shown(list(cases(place, quick)))]
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    info = build_info()
    return {
        "version": info["version"],
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **processor(),
        "threads": used,
        "cpu_level": info["cpu_level"],
        "torch": info["torch"],
        "dtype": str(place.dtype).removeprefix("torch."),
        "quick": quick,
        "rows": rows,
    }
