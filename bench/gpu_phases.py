"""Where `gpu.py` runs things, and its first steps: installing the package, asking for facts.

A step returns its part of the record, with "problems": what makes the whole run a failure.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_process import run

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
# Results are compared here anyhow, and a kernel that failed its own test must not be replaced in silence.
TRUST = {"MASKFUSE_SELF_TEST": "0"}


@dataclass(frozen=True)
class Place:
    """Where things run: a temporary folder, the environment of the processes in it, and where their maskfuse lies."""

    folder: Path
    env: Mapping[str, str]
    package: Path = ROOT / "python"

    def finding(self, *paths: Path) -> dict[str, str]:
        """The environment of a process that imports from these folders before any other."""
        found = [*map(str, paths), *filter(None, [self.env.get("PYTHONPATH")])]
        return {**self.env, "PYTHONPATH": os.pathsep.join(found)}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def plain(self, text: str) -> str:
        """The text without this machine's folders."""
        folders = {self.folder: "<run>", ROOT: ".", Path(sys.prefix): "<python>", Path.home(): "~"}
        for path, name in folders.items():
            if path not in (Path("/"), Path("/usr")):
                text = text.replace(str(path), name)
        return text


def place_for(folder: Path) -> Place:
    env = {key: value for key, value in os.environ.items() if key != "MASKFUSE_BACKEND"}
    # A cache of its own: what a package of another build has left in the user's is not to be believed.
    env |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return Place(folder, env)


def newest_wheel(named: Path | None) -> Path | None:
    """The wheel asked for, else the newest of dist/, else None.

    Raises:
        FileNotFoundError: the wheel asked for is not there.
    """
    if named is not None:
        if not named.is_file():
            raise FileNotFoundError(f"--wheel {named}: no such file")
        return named
    return max(ROOT.glob("dist/maskfuse-*.whl"), key=lambda path: path.stat().st_mtime, default=None)


def install(wheel: Path | None, place: Place, seconds: float) -> tuple[Place, dict[str, Any]]:
    """Installs the wheel outside of the repository; the place returned finds that package, or without wheel ours."""
    if wheel is None:
        path, record = ROOT / "python", {"package": "in place"}
    else:
        path, record = place.folder / "site", {"package": wheel.name}
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
        command += ["--no-index", "--target", str(path), str(wheel.resolve())]
        finished = run(command, seconds, place.log("install"), place.env, place.folder)
        if finished.status != 0 and "No module named pip" in finished.output:
            with zipfile.ZipFile(wheel) as archive:  # a wheel of pure files and libraries needs no more
                archive.extractall(path)
            record["installed by"] = "unpacking: no pip"
        elif finished.status != 0:
            return place, {**record, "problems": [f"pip install: {place.plain(finished.tail) or 'out of time'}"]}
    return replace(place, env=place.finding(path), package=path), {**record, "problems": []}


def facts(place: Place, device: str, seconds: float, budget: float) -> dict[str, Any]:
    command = [sys.executable, str(BENCH / "gpu_facts.py"), "--device", device, "--budget", str(budget)]
    finished = run(command, seconds, place.log("facts"), place.env, place.folder)
    if finished.status != 0:
        why = "out of time" if finished.status is None else f"exit status {finished.status}"
        return {"problems": [f"facts: {why}: {place.plain(finished.tail)}"]}
    found = json.loads(finished.output.strip().splitlines()[-1])
    problems = []
    imported = Path(found.pop("package")).resolve()
    if place.package.resolve() not in imported.parents:
        problems.append(f"another maskfuse is in the way: {place.plain(str(imported))}")
    cuda = found["versions"]["maskfuse"]["cuda"]
    if device == "cuda" and found["gpu"] and not cuda["loaded"]:
        problems.append(f"the CUDA library is not loaded: {place.plain(str(cuda['reason']))}")
    return {**found, "problems": problems}


def self_test(place: Place, seconds: float) -> tuple[dict[str, Any] | None, list[str]]:
    """What `maskfuse.self_test` finds, None for a package without one, and problems."""
    code = "import json, maskfuse; print(json.dumps(maskfuse.self_test().as_dict()))"
    code = f"import maskfuse\nif hasattr(maskfuse, 'self_test'): {code}"
    finished = run([sys.executable, "-c", code], seconds, place.log("self-test"), place.env, place.folder)
    if finished.status != 0:
        why = "out of time" if finished.status is None else f"exit status {finished.status}"
        return None, [f"self-test: {why}: {place.plain(finished.tail)}"]
    lines = finished.output.strip().splitlines()
    if not lines:
        return None, []
    found = json.loads(lines[-1])
    failed = [f"{outcome['check']} on {outcome['device']}" for outcome in found["outcomes"] if not outcome["passed"]]
    return found, [f"self-test failed: {', '.join(failed)}"] if failed else []


def nvidia_smi(place: Place) -> dict[str, str] | None:
    """Driver, clocks and load as they are; None where there is no nvidia-smi. Nothing is set."""
    names = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit"
    names += ",temperature.gpu,memory.used,utilization.gpu"
    if shutil.which("nvidia-smi") is None:
        return None
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={names}", "--format=csv,noheader"]
    finished = run(command, 20, place.log("nvidia-smi"), place.env, place.folder)
    lines = list(csv.reader(finished.output.strip().splitlines(), skipinitialspace=True))
    if finished.status != 0 or len(lines) != 1 or len(lines[0]) != len(names.split(",")):
        return {"error": place.plain(finished.tail) or "out of time"}
    return dict(zip(names.split(","), lines[0], strict=True))
