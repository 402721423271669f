"""Where the ops of GPUs run in tests: the CUDA ones on a GPU, and on the host by `make simt` (csrc/simt/simt.h); the
Triton ones on a GPU, or where there is none in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import HAS_TRITON, assert_norm_close, assert_sums_close

_BUILT = Path(os.environ.get("MASKFUSE_SIMT_FOLDER") or Path(__file__).resolve().parent.parent / "build/simt")


def _simt() -> SimpleNamespace | None:
    found = sorted(_BUILT.glob("_C_simt*.so"))
    if not found:
        return None
    torch.ops.load_library(str(found[0]))
    return SimpleNamespace(name="simt", ops=torch.ops.maskfuse_simt, device="cpu")


def _cuda() -> SimpleNamespace | None:
    if not torch.cuda.is_available() or not torch._C._dispatch_has_kernel_for_dispatch_key(
        "maskfuse::mask_pack", "CUDA"
    ):
        return None
    return SimpleNamespace(name="cuda", ops=torch.ops.maskfuse, device="cuda")


def _triton() -> SimpleNamespace | None:
    if not HAS_TRITON:
        return None
    import maskfuse.triton

    device = "cpu" if maskfuse.triton.INTERPRETED else "cuda"
    return SimpleNamespace(name="triton", ops=torch.ops.maskfuse_triton, device=device)


MACHINES = {"simt": _simt(), "cuda": _cuda(), "triton": _triton()}
_REASONS = {
    "simt": "needs build/simt (make simt)",
    "cuda": "needs a GPU and the CUDA library",
    "triton": "needs triton",
}


def _each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "machine",
        [
            pytest.param(
                MACHINES[name],
                id=name,
                marks=[pytest.mark.skipif(MACHINES[name] is None, reason=_REASONS[name])]
                + [pytest.mark.cuda] * (name == "cuda" or getattr(MACHINES[name], "device", "cpu") == "cuda"),
            )
            for name in names
        ],
    )


each_machine = _each(*MACHINES)
"""Runs a test on each: `machine.ops` are the ops, for tensors on `machine.device`."""

each_cuda_machine = _each("simt", "cuda")
"""Where the test is about the CUDA kernels: which is chosen, and how they word what is wrong."""

with_library = pytest.mark.parametrize("library", ["never", "always"])
"""Runs a test by the kernels of `machine`, and by torch's library between the passes that mask a weight."""


def comparison(machine: SimpleNamespace, library: str) -> Callable[..., None]:
    """How results are compared with exact sums: the libraries of GPUs choose among algorithms that round more."""
    return assert_norm_close if library == "always" and machine.name == "cuda" else assert_sums_close


def poisoned(machine: SimpleNamespace) -> None:
    """Makes it likely that an element which no kernel writes is a NaN: fills what the allocator hands out next."""
    for size in (1 << 12, 1 << 16, 1 << 20):
        torch.full((size,), float("nan"), device=machine.device)


@contextmanager
def capability(machine: SimpleNamespace, value: int) -> Iterator[None]:
    """The machine as one of this compute capability, ten times: the stand-in is, a GPU of another one skips."""
    if machine.name == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor != value:
            pytest.skip(f"needs a GPU of compute capability {value / 10}")
        yield
        return
    before = machine.ops.set_capability(value)
    try:
        yield
    finally:
        machine.ops.set_capability(before)


def multiprocessors(machine: SimpleNamespace) -> int:
    """The stand-in's are those of csrc/torch/cuda_library.h."""
    return torch.cuda.get_device_properties(0).multi_processor_count if machine.name == "cuda" else 6
