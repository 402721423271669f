"""What a row of `gpu_rows.py` is made of: the calls that are compared, their work, and what they must compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import maskfuse
import torch
from maskfuse import Mask, backends
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
OURS = "maskfuse"


class NotThereYet(Exception):
    """There is no kernel for this row on this device."""


@dataclass(frozen=True)
class Work:
    """What a call must at least do: bytes of device memory read and written, floating-point operations."""

    bytes: float
    flop: float = 0.0


@dataclass(frozen=True)
class Calls:
    """One set of operands, and the contenders that take it.

    Attributes:
        run: contender -> call; ours is "maskfuse".
        work: contender -> what its call does.
        expected: what the calls compute, from operands in float64.
        unlike: contenders that compute something else: a copy of as many bytes, a product without its mask.
        exact: results are compared bit by bit.
        about: what the record says beside the figures.
    """

    run: dict[str, Callable[[], Result]]
    work: dict[str, Work]
    expected: Callable[[], Result]
    unlike: tuple[str, ...] = ()
    exact: bool = False
    about: dict[str, Any] = field(default_factory=dict)


class Setting:
    """Where rows run. On the CPU, in a dry run, they are tiny."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.tiny = self.device.type == "cpu"
        self._compiled: dict[Callable, Callable] = {}

    def sizes(self, full: Sequence[int], tiny: Sequence[int]) -> tuple[int, ...]:
        return tuple(tiny if self.tiny else full)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def permutation(self, size: int) -> Tensor:
        return torch.randperm(size, device=self.device)

    def mask(self, shape: tuple[int, ...], masked: int) -> Mask:
        """Each weight active by itself, with probability 1 - masked / 100: drawn on the device, which is quick."""
        return Mask.from_dense(torch.rand(shape, device=self.device) >= masked / 100)

    def compiled(self, function: Callable) -> Callable:
        if function not in self._compiled:
            backend = "aot_eager" if self.tiny else "inductor"
            self._compiled[function] = torch.compile(function, fullgraph=True, backend=backend)
        return self._compiled[function]

    def needs(self, op: str) -> None:
        """Raises where our own kernels would not run the op: plain PyTorch is no contender of its own."""
        if self.device.type != "cuda":
            return
        cuda = maskfuse.build_info()["cuda"]
        if not cuda["loaded"]:
            raise RuntimeError(f"the CUDA library is not loaded: {cuda['reason']}")
        verdict = dict(backends.verdicts(op, "cuda"))["cuda"]
        if verdict == f"has no {op}":
            raise NotThereYet(f"no CUDA kernel of {op}")
        if verdict is not None:
            raise RuntimeError(verdict)


def gradients(forward: Callable[[], Tensor], operands: tuple[Tensor, ...], grad: Tensor) -> Callable[[], Result]:
    """A call that computes the output, and from `grad` the gradients of the operands."""

    def run() -> Result:
        output = forward()
        return (output.detach(), *torch.autograd.grad(output, operands, grad))

    return run


def tensors(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def nbytes(*operands: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in operands)


@dataclass(frozen=True)
class Verdict:
    """How far a result is from what is expected, and how far it may be.

    `norm` is |got - want| over |want|; `worst` the largest error of one element over its own size plus the root mean
    square of them all. The first sees a small error everywhere, the second a large one anywhere.
    """

    norm: float
    worst: float
    norm_bound: float
    worst_bound: float

    @property
    def right(self) -> bool:
        return self.norm <= self.norm_bound and self.worst <= self.worst_bound  # a NaN is neither


def judge(got: Result, want: Result, exact: bool = False) -> Verdict:
    """The worst verdict on any tensor of a result."""
    verdicts = [_judge(g, w, exact) for g, w in zip(tensors(got), tensors(want), strict=True)]
    wrong = [verdict for verdict in verdicts if not verdict.right]
    return (wrong or sorted(verdicts, key=lambda verdict: verdict.norm))[-1]


def _judge(got: Tensor, want: Tensor, exact: bool) -> Verdict:
    if got.shape != want.shape:
        raise ValueError(f"a result has shape {list(got.shape)}, expected {list(want.shape)}")
    unit = torch.finfo(got.dtype).eps
    # Half types: products rounded to them and partial sums in them are allowed. Others: sums of thousands of terms.
    bounds = (0.0, 0.0) if exact else (unit, 8 * unit) if unit > 1e-4 else (64 * unit, 1024 * unit)
    want = want.double()
    error = (got.double() - want).abs_()
    size = want.square().mean().sqrt()
    floor = torch.finfo(torch.float64).tiny
    norm = (error.square().mean().sqrt() / (size + floor)).item()
    worst = (error / (want.abs() + size + floor)).amax().item()  # amax hands a NaN on
    return Verdict(norm, worst, *bounds)


def poison(like: Result) -> None:
    """Leaves NaN in memory that the allocator hands out next, so that an element which nothing writes shows."""
    left = [torch.full_like(t, math.nan) for t in tensors(like)]
    del left
