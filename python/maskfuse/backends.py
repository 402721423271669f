"""Which implementation runs an op: the first backend in order that serves the device, or the one asked for.

A backend registers itself with `register`: `cpu`, `cuda` and `triton` run this package's kernels, `reference` plain
PyTorch. On CUDA tensors the order is cuda, triton, reference; on CPU tensors it is cpu, reference. Nothing else is
tried where no backend asked for by `use_backend` or MASKFUSE_BACKEND can run: that is an error. What is traced for
`torch.onnx.export` is the reference.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ._traced import constant_when_traced, is_jit_tracing


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes:
        name: what `use_backend` calls it.
        ops: op stem -> function (input, weight, mask, bias, ...).
        refuses: device -> None where the backend serves it, else the reason why not.
        distrusts: (op stem, device) -> None, or why its kernel of that op is not used on a device that it serves. Asked
            only where the backend is about to be used: what it takes to know may be imported or run for it.
    """

    name: str
    ops: Mapping[str, Callable[..., Any]]
    refuses: Callable[[torch.device], str | None]
    distrusts: Callable[[str, torch.device], str | None] | None = None


_backends: dict[str, Backend] = {}  # in order of preference
_chosen = threading.local()
_from_environment = tuple(name.strip() for name in os.environ.get("MASKFUSE_BACKEND", "").split(",") if name.strip())
_warned: set[tuple[str, str]] = set()


def register(backend: Backend) -> None:
    """Adds a backend behind those that are there; the reference, which serves every device, stays last."""
    _backends[backend.name] = backend
    if "reference" in _backends:
        _backends["reference"] = _backends.pop("reference")


def extend(name: str, ops: Mapping[str, Callable[..., Any]]) -> None:
    """Gives a registered backend further ops."""
    _backends[name] = replace(_backends[name], ops={**_backends[name].ops, **ops})


def names() -> list[str]:
    """Backends in order of preference."""
    return list(_backends)


def requested() -> tuple[str, ...] | None:
    """The backends asked for in this thread, or by the environment when maskfuse was imported, in order; or None."""
    return getattr(_chosen, "names", None) or _from_environment or None


_is_compiling = torch.compiler.is_compiling


@constant_when_traced
def _for_onnx() -> bool:
    onnx = sys.modules.get("torch.onnx")  # not loaded, or not whole yet: nothing is being exported by it
    return bool(getattr(onnx, "is_in_onnx_export", bool)())


def traced_plainly() -> bool:
    """Whether code is being traced into torch's own ops alone: what asks for the reference gets a program that needs no
    maskfuse to run, and ONNX knows no other ops."""
    if not (_is_compiling() or is_jit_tracing()):
        return False
    return requested() == ("reference",) or _for_onnx()


def _known(name: str) -> Backend:
    if name not in _backends:
        raise ValueError(f"backend must be one of {', '.join(_backends)}; got {name!r}")
    return _backends[name]


def refusal(name: str, device: torch.device) -> str | None:
    """None where the named backend serves the device, else why not."""
    return _known(name).refuses(device)


def _reason(backend: Backend, op: str, device: torch.device) -> str | None:
    # In this order: kernels are tested, and packages imported, on devices that the backend serves alone.
    reason = backend.refuses(device)
    if reason is None and op not in backend.ops:
        reason = f"has no {op}"
    if reason is None and backend.distrusts is not None:
        reason = backend.distrusts(op, device)
    return reason


def trusted(name: str, op: str, device: torch.device) -> bool:
    """Whether the named backend serves the device, and its kernels of `op` are used there."""
    backend = _known(name)
    return backend.refuses(device) is None and (backend.distrusts is None or backend.distrusts(op, device) is None)


def verdicts(op: str, device: torch.device | str) -> list[tuple[str, str | None]]:
    """(backend, None or why it cannot run `op` there), in order of preference.

    Of backends behind the first that can, only what is known without using them.
    """
    device = torch.device(device)
    result: list[tuple[str, str | None]] = []
    for backend in _backends.values():
        if any(reason is None for _, reason in result):
            backend = replace(backend, distrusts=None)
        result.append((backend.name, _reason(backend, op, device)))
    return result


def _choose_from(names: tuple[str, ...], op: str, device: torch.device) -> Backend:
    reasons = []
    for name in names:
        backend = _known(name)
        reason = _reason(backend, op, device)
        if reason is None:
            return backend
        reasons.append((name, reason))
    if len(reasons) == 1:
        raise RuntimeError(f"backend {reasons[0][0]!r} cannot run {op} on {device.type}: {reasons[0][1]}")
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons)
    raise RuntimeError(f"none of the backends {', '.join(names)} can run {op} on {device.type}: {listed}")


def choose(op: str, device: torch.device | str, warn: bool = True) -> Backend:
    """The backend that runs `op` on a device; with `warn`, falling to the reference is said once.

    Raises:
        ValueError: a backend asked for is not one.
        RuntimeError: none of the backends asked for can run this op on this device.
    """
    if isinstance(device, str):
        device = torch.device(device)
    if traced_plainly():
        return _backends["reference"]
    asked_for = requested()
    if asked_for:
        return _choose_from(asked_for, op, device)
    for backend in _backends.values():  # the usual case needs no list of reasons
        if backend.name != "reference" and _reason(backend, op, device) is None:
            return backend
    found = verdicts(op, device)
    name = next(name for name, reason in found if reason is None)
    if warn and name == "reference" and not torch.compiler.is_compiling() and (op, device.type) not in _warned:
        _warned.add((op, device.type))
        others = "; ".join(f"{other}: {reason}" for other, reason in found if reason is not None)
        warnings.warn(
            f"maskfuse: {op} on {device.type} runs as plain PyTorch (no speed or memory gained): {others}",
            UserWarning,
            stacklevel=3,
        )
    return _backends[name]


@contextlib.contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Runs every op inside the `with` block, in this thread, on the named backend.

    Of several, on the first that can run an op: `with use_backend("triton", "reference")` leaves out all others.
    A gradient is computed by the backend of its forward pass. MASKFUSE_BACKEND does the same for a process, with commas
    between names.

    Args:
        names: of `"cuda"`, `"triton"`, `"cpu"` and `"reference"`. `"triton"` takes CUDA tensors, and with Triton's
            interpreter (TRITON_INTERPRET=1) those on the CPU, slowly.

    Raises:
        TypeError: no name.
        ValueError: no such backend.
        RuntimeError: from an op that none of them can run.
    """
    if not names:
        raise TypeError("use_backend needs the name of a backend")
    for name in names:
        _known(name)
    before = getattr(_chosen, "names", None)
    _chosen.names = names
    try:
        yield
    finally:
        _chosen.names = before
