"""What is built and what is loaded."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
from typing import Any

import torch

from . import _library, backends
from ._self_test.record import version
from .explain import Explanation as Explanation  # as pickles call it
from .explain import explain as explain
from .functional._backends import triton_is_interpreted
from .ops.library import library_info, pairs


def build_info() -> dict[str, Any]:
    """What was built and what is loaded: plain values, ready for JSON.

    Keys: `version`, `torch`, `python`, `compiler`, `torch_abi_target`, `cpu_levels` (compiled in and able to run
    here), `cpu_level` (in use; MASKFUSE_CPU overrides), `backends` (in order of preference), `cuda`: `loaded`,
    `reason` (why not, or None) and what the CUDA library says of itself; and `triton`: `version` (None where it is not
    installed), `loaded` (whether its backend was used, for which it is imported) and `interpreted`.
    """
    library = library_info()
    cuda: dict[str, Any] = {"loaded": _library.cuda_reason is None, "reason": _library.cuda_reason}
    if cuda["loaded"]:
        cuda.update(pairs(torch.ops.maskfuse.cuda_library_info()))
    return {
        "version": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": library["compiler"],
        "torch_abi_target": library["torch_abi_target"],
        "cpu_levels": library["cpu_levels"].split(","),
        "cpu_level": torch.ops.maskfuse.cpu_level(),
        "backends": backends.names(),
        "cuda": cuda,
        "triton": {
            "version": _triton_version(),
            "loaded": "maskfuse.triton" in sys.modules,
            "interpreted": triton_is_interpreted(),
        },
    }


def _triton_version() -> str | None:
    """Without importing it. It has other names where a maker of GPUs packages it."""
    for name in ("triton", "pytorch-triton-rocm", "pytorch-triton", "triton-rocm", "triton-windows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
