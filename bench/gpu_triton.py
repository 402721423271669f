"""Rows of the Triton backend: the compiled kernels' rows once more, with both of ours as contenders.

What is compared with a target is Triton's; "cuda kernels" are the compiled ones in the same round. Without a GPU, in
a dry run, plain PyTorch stands for Triton and the CPU's kernels for the compiled ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gpu_linear
import maskfuse
from gpu_calls import OURS, Calls, NotThereYet, Result, Setting
from maskfuse import backends

COMPILED = "cuda kernels"


def _under(backend: str, call: Any) -> Any:
    def run() -> Result:
        with maskfuse.use_backend(backend):
            return call()

    return run


def _names(setting: Setting) -> tuple[str, str]:
    if setting.device.type != "cuda":
        return "cpu", "reference"
    with maskfuse.use_backend("triton"):
        try:
            backends.choose("masked_linear", setting.device)
        except RuntimeError as error:
            raise NotThereYet(str(error)) from error
    return "cuda", "triton"


def again(setting: Setting, function: str, **options: Any) -> Calls:
    """A row of gpu_linear, run by the compiled kernels and by Triton's, gradients included."""
    compiled, triton = _names(setting)
    calls = getattr(gpu_linear, function)(setting, **options)
    run = dict(calls.run)
    ours = run.pop(OURS)
    work = {**calls.work, COMPILED: calls.work[OURS]}
    return replace(
        calls, run={**run, COMPILED: _under(compiled, ours), OURS: _under(triton, ours)}, work=work
    )  # fmt: skip


def decode(setting: Setting, **options: Any) -> Calls:
    """A weight packed by Triton's backend, and read by it."""
    _, triton = _names(setting)
    if setting.device.type != "cuda":
        triton = "cpu"  # plain PyTorch packs nothing
    with maskfuse.use_backend(triton):
        calls = gpu_linear.decode(setting, **options)
    return replace(calls, run={**calls.run, OURS: _under(triton, calls.run[OURS])})
