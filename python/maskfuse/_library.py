"""Loads the compiled libraries, and keeps the reason where one cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


def _load(stem: str) -> str | None:
    """Loads `stem`; returns None, or why it is not loaded."""
    found = sorted(_FOLDER.glob(f"{stem}.*so")) + sorted(_FOLDER.glob(f"{stem}.so"))
    if not found:
        return f"{stem} was not built (see MASKFUSE_CUDA in setup.py)" if stem == "_C_cuda" else f"{stem} was not built"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0].name} could not be loaded: {error}"
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
