"""The step of `gpu.py` that runs compute-sanitizer, where it is found."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from gpu_phases import BENCH, TRUST, Place
from gpu_process import run

TOOLS = ("memcheck", "racecheck", "initcheck")


def find_sanitizer() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)])
    return shutil.which("compute-sanitizer", path=path)


def sanitizer(place: Place, binary: str | None, tool: str, seconds: float, device: str = "cuda") -> dict[str, Any]:
    """One tool of compute-sanitizer on small ops. Where the tool cannot work, that is on record and no failure."""
    if binary is None:
        return {"status": "not there: no compute-sanitizer", "problems": []}
    if seconds < 20:
        return {"status": "not run: budget", "problems": []}
    # Every tensor an allocation of its own: the allocator's blocks would hide what lies past a tensor's end.
    env = {**place.env, **TRUST, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [binary, "--tool", tool, "--error-exitcode", "9", sys.executable, str(BENCH / "gpu_small_ops.py"), device]
    finished = run(command, seconds, place.log(tool), env, place.folder)
    errors = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", finished.output)
    found = int(errors[1] or errors[2]) if errors else None
    cases = re.search(r"(\d+) cases ran, (\d+) results are wrong", finished.output)
    record = {
        "tool": tool,
        "seconds": round(finished.seconds, 1),
        "errors": found,
        "cases": int(cases[1]) if cases else 0,
    }
    tail = place.plain(finished.tail)
    if found:
        head = place.plain(finished.output[:4000])
        return {**record, "status": "errors", "output": head, "problems": [f"{tool}: {found} errors"]}
    if cases and int(cases[2]):
        return {**record, "status": "wrong results", "output": tail, "problems": [f"{tool}: {cases[2]} wrong results"]}
    if finished.status is None:
        return {**record, "status": "not finished: budget", "problems": []}
    if found == 0 and cases and finished.status == 0:
        return {**record, "status": "clean", "problems": []}
    if found == 0:
        return {**record, "status": "failed", "output": tail, "problems": [f"{tool}: the script failed"]}
    return {**record, "status": "no verdict", "output": tail, "problems": []}
