"""What the compiled library says about itself."""

from __future__ import annotations

import torch

from .. import _library as _library


def pairs(text: str) -> dict[str, str]:
    """`key=value` lines as a dictionary."""
    return dict(line.split("=", 1) for line in text.splitlines())


def library_info() -> dict[str, str]:
    """Compiler, ABI, CPU levels, and whether torch's own product of full matrices is the faster one here."""
    return pairs(torch.ops.maskfuse.library_info())


def cuda_library_info() -> dict[str, str]:
    """Of the CUDA library, where it is loaded: its runtime and the driver's version, as 1000 major + 10 minor, and the
    architectures it was compiled for."""
    return pairs(torch.ops.maskfuse.cuda_library_info())


LIBRARY_GEMM = library_info()["library_gemm"] == "1"
"""True where a mask that hides nothing runs torch's own linear layer."""
