"""Samples of a batch: which are chosen, drawn on the host, gathered and put back."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .._checks import describe
from .._memory_format import memory_format_of
from ..functional import _check


def indices(active: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Int64 indices of the active samples and of the others, both rising, on `device`."""
    order = (~active).to(torch.uint8).sort(stable=True).indices
    count = int(active.count_nonzero())  # the one wait where `active` is on a device
    order = order.to(device, non_blocking=True)
    return order[:count], order[count:]


def draw(count: int, p: float) -> Tensor:
    """Bool `[count]`, each true with probability 1 - p."""
    return torch.rand(count, dtype=torch.float32, device="cpu") >= p


def chance(p: float) -> bool:
    """Whether what is skipped with probability p is run this time."""
    return bool(draw(1, p))


def rows_of(input: Tensor, index: Tensor) -> Tensor:
    """The samples at `index`, in the memory format of the input."""
    if memory_format_of(input) == torch.contiguous_format:
        return input.index_select(0, index)
    return input.movedim(1, -1).index_select(0, index).movedim(-1, 1)  # torch would drop channels_last


def with_rows(base: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of `base` in which `rows` stand at `index`."""
    if memory_format_of(base) == torch.contiguous_format:
        return base.index_copy(0, index, rows)
    return base.movedim(1, -1).index_copy(0, index, rows.movedim(1, -1)).movedim(-1, 1)


def widened(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows in the wider of two dtypes."""
    return rows.to(torch.promote_types(rows.dtype, dtype))


def check_samples(input: Tensor) -> None:
    """Refuses an input that has no samples."""
    if input.dim() == 0:
        raise ValueError(f"input must have shape [N, ...] for samples to be chosen, got {describe(input)}")


def check_active(active: Tensor, input: Tensor) -> None:
    """Refuses what is no bool tensor `[N]` on the device of `input` or the CPU."""
    check_samples(input)
    if active.dtype != torch.bool:
        raise TypeError(f"active must be a bool or a bool tensor [N], got {describe(active)}")
    if active.shape != input.shape[:1]:
        raise ValueError(
            f"active must have shape {[input.shape[0]]} for input {describe(input)}, got {describe(active)}"
        )
    if active.device.type != "cpu":
        _check.same_device("active", active, "input", input)


def check_shape(output: Tensor, skip: Tensor, where: str) -> None:
    """Refuses a module's output of another shape than what is skipped has."""
    if output.shape != skip.shape:
        raise ValueError(
            f"the module must return the shape of what is skipped, got {describe(output)} "
            f"where {where} {describe(skip)}"
        )


outside = SimpleNamespace()
"""What traced code calls outside of its graphs: set when the first module is made, since saying so imports the
compiler."""


def set_outside() -> None:
    """Fills `outside`, once a process."""
    if vars(outside):
        return
    found = {}
    for name, function, known in (
        ("indices", indices, "which samples are active"),
        ("draw", draw, "what is skipped"),
        ("chance", chance, "what is skipped"),
    ):
        reason = f"maskfuse.nn.Bypass: {known} must be known to the host"
        found[name] = torch.compiler.disable(function, reason=reason)
    vars(outside).update(found)  # all at once: another thread may look
