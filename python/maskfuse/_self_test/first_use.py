"""Before a CUDA kernel is used for the first time, its checks must have passed: on this device model in the package's
record, on this machine in the user's, or now."""

from __future__ import annotations

import json
import os
import threading
import warnings
from typing import Any

import torch

from .._traced import constant_when_traced
from . import record
from .checks import DeviceLost, checking, failure, needed

_off = os.environ.get("MASKFUSE_SELF_TEST") == "0"
_verdicts: dict[tuple[str, int], str | None] = {}  # (op, device) -> None, or why its kernels are not used there
_outcomes: dict[tuple[str, int], str | None] = {}  # (check, device) -> None, or how it failed
_settling = threading.RLock()


@constant_when_traced  # traced code takes what is known, and is not traced anew when more is
def distrusts(op: str, device: torch.device) -> str | None:
    """None where the CUDA kernels of `op` may be used on `device`, else which check they failed and how.

    Usually looked up. The first time in a process the records are read, and the checks that are in none of them are
    run, some tens of milliseconds each; one thread does so, and others wait. In code that is traced, transformed or
    captured in a graph nothing is run and nothing settled. MASKFUSE_SELF_TEST=0 trusts all kernels.
    """
    index = device.index
    if index is None:
        index = torch.cuda.current_device()
    try:
        return _verdicts[op, index]
    except KeyError:
        return _settle(op, index)


def _cannot_run_now() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._guards.TracingContext.try_get() is not None
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
        or torch.cuda.is_current_stream_capturing()
    )


_TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


def _settle(op: str, index: int) -> str | None:
    if _off:
        _verdicts[op, index] = None
        return None
    if checking() or _cannot_run_now():
        return None
    with _settling:
        if (op, index) not in _verdicts:  # else another thread was here first
            _verdicts[op, index] = _verdict(op, index)
        return _verdicts[op, index]


def kernels(index: int) -> tuple[Any, torch.device]:
    """The ops of the CUDA library, and the device that they are checked on."""
    return torch.ops.maskfuse, torch.device("cuda", index)


def _verdict(op: str, index: int) -> str | None:
    ops, device = kernels(index)
    unknown = [check for check in needed(op, ops, device) if (check.name, index) not in _outcomes]
    if unknown:
        who = record.identity(index)
        known = {**record.found(who), **dict.fromkeys(record.passed_in_package(who))}
        new: dict[str, str | None] = {}
        for check in unknown:
            if check.name not in known:
                error = failure(check, ops, device)
                if inconclusive(error):
                    continue  # trusted in this process, and not recorded
                known[check.name] = new[check.name] = described(error)
            _outcomes[check.name, index] = known[check.name]
            if known[check.name] is not None:
                warn(check.name, who, str(known[check.name]))
        if new:
            record.remember(who, new)
    for check in needed(op, ops, device):
        error_text = _outcomes.get((check.name, index))
        if error_text is not None:
            return f"failed its self-test ({check.name}: {error_text})"
    return None


def inconclusive(error: Exception | None) -> bool:
    """Whether a check failed for what says nothing of its kernels: want of memory, or a device lost before."""
    return isinstance(error, (torch.OutOfMemoryError, DeviceLost)) or "out of memory" in str(error)


def described(error: Exception | None) -> str | None:
    """The error in one line, None for none."""
    if error is None:
        return None
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def settle(index: int, outcomes: dict[str, str | None]) -> None:
    """Takes the outcomes of checks that were just run on a device, for this process and for those to come."""
    with _settling:
        for name, error in outcomes.items():
            _outcomes[name, index] = error
        for key in [key for key in _verdicts if key[1] == index]:
            del _verdicts[key]
        record.remember(record.identity(index), outcomes)


def warn(check: str, who: record.Identity, error: str) -> None:
    """Says once a process that a kernel is not used, and what to report."""
    from ..info import build_info  # which knows of all that is here

    warnings.warn(
        f"maskfuse: the CUDA kernels of {check} failed their self-test on {who.device} and are not used: {error}. "
        "Another backend takes their place, which maskfuse.explain names. Please report this message. The outcome is "
        f"kept in {record.path()} until package, device or driver change; `python -m maskfuse self-test` tests again, "
        f"and MASKFUSE_SELF_TEST=0 uses the kernels all the same. Driver {who.driver}, library {who.library}, "
        f"{json.dumps(build_info())}",
        UserWarning,
        stacklevel=2,
    )
