"""The backends that exist; each function's module gives them its op."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import SimpleNamespace

import torch

from .. import _library
from .._self_test import first_use
from .._traced import constant_when_traced
from ..backends import Backend, register, requested
from ..ops.library import cuda_library_info

_capable: dict[int, str | None] = {}  # device -> None or why its kernels cannot run there


def _cuda_reason(index: int) -> str | None:
    library = cuda_library_info()
    if int(library["driver"]) // 1000 < int(library["runtime"]) // 1000:  # releases of one major version go together
        return f"the driver is for CUDA {library['driver']}, the library needs {library['runtime']}"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return None


@constant_when_traced  # asking the library is nothing that can be traced
def _cuda_refuses(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "serves CUDA tensors only"
    if _library.cuda_reason is not None:
        return _library.cuda_reason
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _capable:
        _capable[index] = _cuda_reason(index)
    return _capable[index]


triton = SimpleNamespace()
"""The Triton ops with their derivatives, which `_load_triton` fills in when they are first to be used."""

_LEAST_TRITON = (8, 0)  # compute capability


def triton_is_interpreted() -> bool:
    """Whether Triton's interpreter runs, or would run, the Triton kernels: as its own setting is read."""
    loaded = sys.modules.get("maskfuse.triton")
    if loaded is not None and hasattr(loaded, "INTERPRETED"):
        return bool(loaded.INTERPRETED)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


_triton_cannot: dict[int | None, str | None] = {}  # device, or None for all -> None or why its kernels cannot run there


def _triton_is_missing() -> bool:
    if None not in _triton_cannot:
        try:
            missing = importlib.util.find_spec("triton") is None
        except (ImportError, ValueError):  # something else of that name
            missing = True
        _triton_cannot[None] = "triton is not installed" if missing else None
    return _triton_cannot[None] is not None


def _gpu_is_too_old(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < _LEAST_TRITON:
        return f"compute capability {capability[0]}.{capability[1]}, Triton needs 8.0"
    return None


@constant_when_traced
def _triton_refuses(device: torch.device) -> str | None:
    """Without importing triton."""
    if device.type not in ("cpu", "cuda"):
        return "serves CUDA tensors only"
    interpreted = triton_is_interpreted()
    if device.type == "cpu" and not interpreted:
        return "serves CUDA tensors only; with TRITON_INTERPRET=1, tensors on the CPU"
    if _triton_is_missing():
        return "triton is not installed"
    if interpreted:
        asked_for = "triton" in (requested() or ())
        return None if asked_for or device.type == "cpu" else "TRITON_INTERPRET is set: only where it is asked for"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _triton_cannot:
        _triton_cannot[index] = _gpu_is_too_old(index)
    return _triton_cannot[index]


_loading: dict[int, str | None] = {}  # device, or -1 for the CPU -> None, or why the kernels cannot be used there


@constant_when_traced
def _load_triton(op: str, device: torch.device) -> str | None:
    index = -1 if device.type == "cpu" else torch.cuda.current_device() if device.index is None else device.index
    if index not in _loading:
        _loading[index] = _try_triton(index)
    return _loading[index]


def _try_triton(index: int) -> str | None:
    """Imports the kernels and launches one: what Triton compiles with may be missing where triton is not."""
    try:
        loaded = importlib.import_module("maskfuse.triton")
        vars(triton).update({name: value for name, value in vars(loaded.products).items() if callable(value)})
        if index >= 0 and not loaded.INTERPRETED and not torch.cuda.is_current_stream_capturing():
            loaded.try_launch(torch.device("cuda", index))
    except Exception as error:  # a triton too old or too new, or half installed; no C compiler; no such architecture
        return f"triton cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


# A meta tensor computes nothing: the ops' fake implementations give the shape.
register(
    Backend("cpu", {}, lambda device: None if device.type in ("cpu", "meta") else "serves tensors on the CPU only")
)
register(Backend("cuda", {}, _cuda_refuses, first_use.distrusts))
register(Backend("triton", {}, _triton_refuses, _load_triton))
register(Backend("reference", {}, lambda device: None))
