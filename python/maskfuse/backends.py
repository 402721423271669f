"""Which implementation runs an op: the first backend in order that serves the device, or the one asked for.

A backend registers itself with `register`: `cpu` and `cuda` run this package's kernels, `reference` plain PyTorch.
Nothing else is tried when a backend asked for by `use_backend` or MASKFUSE_BACKEND cannot run: that is an error.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes:
        name: what `use_backend` calls it.
        ops: op stem -> function (input, weight, mask, bias, ...).
        refuses: device -> None where the backend serves it, else the reason why not.
        distrusts: (op stem, device) -> None, or why its kernel of that op is not used on a device that it serves.
    """

    name: str
    ops: Mapping[str, Callable[..., Any]]
    refuses: Callable[[torch.device], str | None]
    distrusts: Callable[[str, torch.device], str | None] | None = None


_backends: dict[str, Backend] = {}  # in order of preference
_chosen = threading.local()
_from_environment = os.environ.get("MASKFUSE_BACKEND") or None
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


def requested() -> str | None:
    """The backend asked for in this thread, or by the environment when maskfuse was imported, or None."""
    return getattr(_chosen, "name", None) or _from_environment


def _known(name: str) -> Backend:
    if name not in _backends:
        raise ValueError(f"backend must be one of {', '.join(_backends)}; got {name!r}")
    return _backends[name]


def refusal(name: str, device: torch.device) -> str | None:
    """None where the named backend serves the device, else why not."""
    return _known(name).refuses(device)


def _trusted(backend: Backend, op: str, device: torch.device) -> bool:
    # In this order: kernels are tested on devices that the backend serves alone.
    return backend.refuses(device) is None and (backend.distrusts is None or backend.distrusts(op, device) is None)


def trusted(name: str, op: str, device: torch.device) -> bool:
    """Whether the named backend serves the device, and its kernels of `op` are used there."""
    return _trusted(_known(name), op, device)


def verdicts(op: str, device: torch.device | str) -> list[tuple[str, str | None]]:
    """(backend, None or why it cannot run `op` there), in order of preference."""
    device = torch.device(device)
    result = []
    for backend in _backends.values():
        reason = backend.refuses(device)
        if reason is None and op not in backend.ops:
            reason = f"has no {op}"
        if reason is None and backend.distrusts is not None:
            reason = backend.distrusts(op, device)
        result.append((backend.name, reason))
    return result


def choose(op: str, device: torch.device | str, warn: bool = True) -> Backend:
    """The backend that runs `op` on a device; with `warn`, falling to the reference is said once.

    Raises:
        ValueError: the backend asked for is not one.
        RuntimeError: the backend asked for cannot run this op on this device.
    """
    if isinstance(device, str):
        device = torch.device(device)
    asked_for = requested()
    if asked_for is not None:
        backend = _known(asked_for)
        reason = dict(verdicts(op, device))[asked_for]
        if reason is not None:
            raise RuntimeError(f"backend {asked_for!r} cannot run {op} on {device.type}: {reason}")
        return backend
    for backend in _backends.values():  # the usual case needs no list of reasons
        if op in backend.ops and backend.name != "reference" and _trusted(backend, op, device):
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
def use_backend(name: str) -> Iterator[None]:
    """Runs every op inside the `with` block, in this thread, on the named backend.

    A gradient is computed by the backend of its forward pass. MASKFUSE_BACKEND does the same for a process.

    Raises:
        ValueError: no such backend.
        RuntimeError: from an op that the backend cannot run.
    """
    _known(name)
    before = getattr(_chosen, "name", None)
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before
