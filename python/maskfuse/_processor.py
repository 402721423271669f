"""This machine's processor, as Linux describes it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def processor() -> dict[str, Any]:
    """Model, number of processors, and the sizes of its data caches."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    caches = {}
    for index in range(4):
        base = f"/sys/devices/system/cpu/cpu0/cache/index{index}/"
        level, kind, size = (_lines(base + name) for name in ("level", "type", "size"))
        if level and kind and size and kind[0] != "Instruction":
            caches[f"L{level[0]}"] = size[0]
    return {"processor": model or platform.processor(), "processors": os.cpu_count(), "caches": caches}


def last_cache() -> int:
    """Bytes of the last-level cache, 0 where the system does not say."""
    sizes = [size.removesuffix("K") for size in processor()["caches"].values() if size.endswith("K")]
    return max((int(size) << 10 for size in sizes), default=0)
