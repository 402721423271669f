"""The backends that exist; each function's module gives them its op."""

from __future__ import annotations

import torch

from .. import _library
from .._self_test import first_use
from ..backends import Backend, register
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


@torch.compiler.assume_constant_result  # asking the library is nothing that can be traced
def _cuda_refuses(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "serves CUDA tensors only"
    if _library.cuda_reason is not None:
        return _library.cuda_reason
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _capable:
        _capable[index] = _cuda_reason(index)
    return _capable[index]


# A meta tensor computes nothing: the ops' fake implementations give the shape.
register(
    Backend("cpu", {}, lambda device: None if device.type in ("cpu", "meta") else "serves tensors on the CPU only")
)
register(Backend("cuda", {}, _cuda_refuses, first_use.distrusts))
register(Backend("reference", {}, lambda device: None))
