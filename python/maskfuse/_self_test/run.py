"""`self_test`: every kernel of this machine against the reference, once, small."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import _library, backends
from ..ops.library import library_info
from . import first_use, record
from .checks import CHECKS, Check, failure


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        check: its name, and behind it the kernel where one of several is asked for.
        device: `cpu` with the instruction set in use, or a CUDA device with its model's name.
        passed: whether the results are the reference's.
        error: how they differ, or None.
        milliseconds: what it took, with its operands and the reference.
    """

    check: str
    device: str
    passed: bool
    error: str | None
    milliseconds: float


@dataclass(frozen=True)
class SelfTest:
    """What every check found. `str()` is a table for people; `passed` is true where none failed.

    Attributes:
        outcomes: one a check and device.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """True where no check failed."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        return {"version": record.version(), "passed": self.passed, "outcomes": outcomes}

    def __str__(self) -> str:
        """One line a check, behind them what failed and how."""
        check = max([len(outcome.check) for outcome in self.outcomes], default=0)
        device = max([len(outcome.device) for outcome in self.outcomes], default=0)
        lines = [
            f"{'passed' if o.passed else 'FAILED'}  {o.check:<{check}}  {o.device:<{device}}  {o.milliseconds:8.1f} ms"
            for o in self.outcomes
        ]
        lines.append(f"{len(self.outcomes) - len(self.failures)} of {len(self.outcomes)} checks passed")
        lines += [f"{o.check} on {o.device}: {o.error}" for o in self.failures]
        return "\n".join(lines)


# Kernels of the CPU that small operands would not all be given: each is asked for in turn, and taken where it can run.
# The scalar level has one of each op.
_CPU_KERNELS = {
    "masked_linear": ("accumulate", "sampled", "library"),
    "masked_conv2d": ("accumulate", "shifted", "sampled", "direct", "library"),
}


@contextmanager
def _cpu_level(level: str) -> Iterator[None]:
    before = torch.ops.maskfuse.set_cpu_level(level)
    try:
        yield
    finally:
        torch.ops.maskfuse.set_cpu_level(before)


@contextmanager
def _preferring(prefer: Callable[[str], None], kernel: str) -> Iterator[None]:
    prefer(kernel)
    try:
        yield
    finally:
        prefer("")


def _timed(
    check: Check, name: str, ops: Any, device: torch.device, label: str, found: dict[str, str | None] | None = None
) -> Outcome:
    """One check's outcome, which also goes into `found` if it says something of the kernels."""
    start = time.perf_counter()
    error = failure(check, ops, device)
    took = (time.perf_counter() - start) * 1e3
    text = first_use.described(error)
    if found is not None and not first_use.inconclusive(error):
        found[check.name] = text
    return Outcome(name, label, error is None, text, took)


def _on_cpu(ops: Any) -> Iterator[Outcome]:
    device = torch.device("cpu")
    for level in library_info()["cpu_levels"].split(","):
        with _cpu_level(level):
            for check in CHECKS.values():
                if not check.applies(ops, device):
                    continue
                yield _timed(check, check.name, ops, device, f"cpu {level}")
                for kernel in _CPU_KERNELS.get(check.name, ()) if level != "scalar" else ():
                    with _preferring(getattr(ops, f"prefer_{check.name}_kernel"), kernel):
                        yield _timed(check, f"{check.name} {kernel}", ops, device, f"cpu {level}")


def _on_cuda(index: int) -> Iterator[Outcome]:
    ops, device = first_use.kernels(index)
    label = f"cuda:{index} {torch.cuda.get_device_name(index)}"
    found: dict[str, str | None] = {}
    for check in CHECKS.values():
        if check.applies(ops, device):
            yield _timed(check, check.name, ops, device, label, found)
    first_use.settle(index, found)


def _on_triton(index: int) -> Iterator[Outcome]:
    device = torch.device("cuda", index)
    label = f"cuda:{index} triton"
    if not backends.trusted("triton", "masked_linear", device):
        with backends.use_backend("triton"):
            why = dict(backends.verdicts("masked_linear", device))["triton"]
        yield Outcome("triton", label, False, why or "triton cannot be used", 0.0)
        return
    for check in CHECKS.values():
        if check.applies(torch.ops.maskfuse_triton, device):
            yield _timed(check, check.name, torch.ops.maskfuse_triton, device, label)


def _cuda_devices() -> list[int]:
    """Those that either backend serves."""
    if not torch.cuda.is_available():
        return []
    return [index for index in range(torch.cuda.device_count()) if _refusal(index) is None or _triton_serves(index)]


def _triton_serves(index: int) -> bool:
    return backends.refusal("triton", torch.device("cuda", index)) is None


def _refusal(index: int) -> str | None:
    """Why the library's kernels cannot run on a device: its driver or the device itself is too old."""
    return backends.refusal("cuda", torch.device("cuda", index))


def _why_not(index: int) -> str:
    """Why a CUDA device cannot be tested."""
    count = torch.cuda.device_count()
    return _library.cuda_reason or (_refusal(index) if index < count else None) or f"there are {count} CUDA devices"


def self_test(device: torch.device | str | None = None) -> SelfTest:
    """Runs every kernel of this machine on small random problems, against the reference in float64: on the CPU each
    instruction set that was compiled in and that it has, and on each CUDA device the compiled kernels. Triton's, which
    take a minute and more to compile, are tested where they take the compiled ones' place, and where they are asked
    for: `with use_backend("triton")`.

    A failing kernel does not raise: it is in the result. What was found on a CUDA device is also recorded, in
    `maskfuse/self_test.json` of the user's cache directory, in the place of what the first use of a kernel had found: a
    kernel that fails is not used from then on, and one that passes is used again.

    While the CPU's kernels are tested, other threads that call them are served by the one under test, with results
    that are right but not bitwise those of before. The random state of torch is not touched.

    Args:
        device: `"cpu"`, `"cuda"` (all of them) or one CUDA device; None for the CPU and all CUDA devices.

    Returns:
        A `SelfTest`: `print` it, or read `passed` and `failures`.

    Raises:
        RuntimeError: torch has no device of that name.
        ValueError: a device that this package has no kernels for, or that is not there.
    """
    wanted = None if device is None else torch.device(device)
    devices = _cuda_devices()
    if wanted is not None:
        if wanted.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device!r}")
        if wanted.type == "cuda":
            devices = [index for index in devices if wanted.index in (None, index)]
            if not devices:
                raise ValueError(f"device is {device!r}, which cannot be tested: {_why_not(wanted.index or 0)}")
    outcomes: list[Outcome] = []
    if wanted is None or wanted.type == "cpu":
        outcomes += _on_cpu(torch.ops.maskfuse)
    if wanted is None or wanted.type == "cuda":
        for index in devices:
            if _refusal(index) is None:
                outcomes += _on_cuda(index)
            if _triton_serves(index) and (_refusal(index) is not None or "triton" in (backends.requested() or ())):
                outcomes += _on_triton(index)
    return SelfTest(tuple(outcomes))
