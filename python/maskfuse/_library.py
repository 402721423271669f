"""Loads the compiled libraries, and keeps the reason where one cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


def _file(stem: str) -> Path | None:
    found = sorted(_FOLDER.glob(f"{stem}.*so")) + sorted(_FOLDER.glob(f"{stem}.so"))
    return found[0] if found else None


def _load(stem: str) -> str | None:
    """Loads `stem`; returns None, or why it is not loaded."""
    file = _file(stem)
    if file is None:
        return f"{stem} was not built (see MASKFUSE_CUDA in setup.py)" if stem == "_C_cuda" else f"{stem} was not built"
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{file.name} could not be loaded: {error}"
    return None


_reason = _load("_C")
if _reason is not None:
    raise ImportError(
        f"maskfuse: {_reason}. Install a wheel, or build in place with `make build`; torch is {torch.__version__}."
    )

if torch.version.cuda is None:
    cuda_reason: str | None = f"torch {torch.__version__} has no CUDA"
else:
    cuda_reason = _load("_C_cuda")
"""None where `_C_cuda` is loaded, else why it is not."""

cuda_path = _file("_C_cuda")
"""The file of `_C_cuda`, or None where there is none."""
