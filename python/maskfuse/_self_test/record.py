"""Which checks have passed where: what the package knows of device models, and what this user's machine has found."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from .. import _library
from ..ops.library import cuda_library_info

# Written by bench/gpu_passes.py: [{"version": ..., "device": ..., "checks": [...]}, ...].
_PACKAGE_RECORD = Path(__file__).resolve().parent.parent / "gpu_passes.json"
# Libraries, devices and drivers that the user's record holds; the oldest make way.
_MOST_KEYS = 64
_FORMAT = 1


def version() -> str:
    """The installed version, or "in place" for a build in the source tree."""
    try:
        return metadata.version("maskfuse")
    except metadata.PackageNotFoundError:
        return "in place"


@dataclass(frozen=True)
class Identity:
    """What a check's outcome holds for: anything else, and it is run again.

    Attributes:
        version: of this package.
        library: the CUDA library's file: its size and when it was last changed, so that a new build is another one.
        device: the model's name.
        driver: its version.
    """

    version: str
    library: str
    device: str
    driver: str

    @property
    def key(self) -> str:
        """All of it in one line."""
        return " | ".join((self.version, self.library, self.device, self.driver))


def _library_file() -> str:
    if _library.cuda_path is None:
        return "none"
    about = os.stat(_library.cuda_path)
    return f"{about.st_size} bytes of {about.st_mtime_ns}"


def _driver() -> str:
    """The driver's release where the system says it, else the CUDA version that it is for."""
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        if found:
            return found[1]
    return f"for CUDA {cuda_library_info()['driver']}"


def identity(index: int) -> Identity:
    """Of the CUDA device with this index."""
    return Identity(version(), _library_file(), torch.cuda.get_device_name(index), _driver())


def passed_in_package(who: Identity) -> set[str]:
    """Checks that passed on this device model with this version, before it was released."""
    try:
        entries = json.loads(_PACKAGE_RECORD.read_text())
        return {
            check
            for entry in entries
            if entry["version"] == who.version and entry["device"] == who.device
            for check in entry["checks"]
        }
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def path() -> Path:
    """The user's record: `maskfuse/self_test.json` in $XDG_CACHE_HOME or ~/.cache."""
    # Path.home() raises where there is no home; expanduser leaves "~" as it is.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "maskfuse" / "self_test.json"


def _read() -> dict[str, dict[str, str | None]]:
    """Key -> check -> None or how it failed; what cannot be read or understood is as if it were not there."""
    try:
        content = json.loads(path().read_text())
        if content["format"] != _FORMAT:
            return {}
        return {
            key: {check: error for check, error in found.items() if error is None or isinstance(error, str)}
            for key, found in content["found"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def found(who: Identity) -> dict[str, str | None]:
    """What this user's machine has found: check -> None where it passed, or how it failed."""
    return _read().get(who.key, {})


def remember(who: Identity, outcomes: dict[str, str | None]) -> bool:
    """Adds outcomes to the user's record; False where that cannot be written.

    The file is replaced as a whole, so that a reader sees all of it, old or new. Of two processes that write at the
    same time one may lose what the other found, which is then found again.
    """
    everything = _read()
    everything[who.key] = {**everything.pop(who.key, {}), **outcomes}  # the newest key last
    kept = dict(list(everything.items())[-_MOST_KEYS:])
    target = path()
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix=f"{target.name}.", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            json.dump({"format": _FORMAT, "found": kept}, file, indent=1)
        os.replace(temporary, target)
        return True
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
