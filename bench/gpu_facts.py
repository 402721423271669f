"""Prints, as one JSON object on the last line, what figures depend on, and this device's own yardsticks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from typing import Any

import maskfuse
import torch
from gpu_timing import clock_of, compare


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory bytes": properties.total_memory,
        "L2 bytes": properties.L2_cache_size,
    }


def _versions() -> dict[str, Any]:
    triton = None
    if importlib.util.find_spec("triton") is not None:
        import triton as module

        triton = module.__version__
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "triton": triton,
        "maskfuse": maskfuse.build_info(),
    }


def _yardsticks(device: torch.device, budget: float) -> dict[str, float]:
    """What a large copy and a large product reach, on random numbers."""
    tiny = device.type != "cuda"
    clock = clock_of(device)
    numbers, side = (1 << 16, 128) if tiny else (1 << 30, 8192)
    if not tiny:
        numbers = min(numbers, torch.cuda.get_device_properties(device).total_memory // 16)  # a quarter, each
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    copy = compare(clock, {"copy": [lambda: target.copy_(source)]}, budget)["copy"].timing.median
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = compare(clock, {"product": [lambda: a @ b]}, budget)["product"].timing.median
    return {"copy TB/s": 8 * numbers / copy / 1e12, f"bfloat16 {side}^3 TFLOP/s": 2 * side**3 / product / 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--budget", type=float, default=1.0)
    options = parser.parse_args()
    facts: dict[str, Any] = {"package": maskfuse.__file__, "versions": _versions()}
    facts["gpu"] = torch.cuda.is_available()
    if options.device == "cpu" or facts["gpu"]:
        device = torch.device(options.device)
        facts["device"] = _device(device)
        torch.manual_seed(0)
        facts["yardsticks"] = _yardsticks(device, options.budget)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
