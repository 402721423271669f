"""What names channels or samples: slices and ranges, bool tensors, index tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import describe
from . import _check

INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def check_activation(input: object, name: str = "input") -> None:
    """Raises unless `input` is a tensor `[samples, channels, ...]`."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(input).__name__}")
    if input.dim() < 2:
        raise ValueError(f"{name} must have shape [N, C, ...], got {describe(input)}")


def check_size(value: object, name: str) -> None:
    """Raises unless `value` is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def positions(selector: slice | range, size: int, name: str) -> range:
    """The entries of an axis that a slice or range names, counted from 0.

    Raises:
        TypeError: neither a slice nor a range.
        IndexError: a range that leaves the axis. A slice is cut to it, as everywhere in Python.
        ValueError: a step that is not positive (a view has none such), or a range that passes from negative entries,
            which count from the end, to others.
    """
    if not isinstance(selector, (slice, range)):
        raise TypeError(f"{name} must be a slice, a range or a tensor, got {type(selector).__name__}")
    if selector.step is not None and selector.step <= 0:
        raise ValueError(f"{name} must have a positive step, got {selector}; an index tensor takes any order")
    if isinstance(selector, slice):
        entries = range(size)[selector]
        return entries if len(entries) > 0 else range(0)
    if len(selector) == 0:
        return range(0)
    first, last = selector[0], selector[-1]
    if first < -size or last >= size:
        raise IndexError(f"{name} is {selector}, out of range for size {size}")
    if first < 0 <= last:
        raise ValueError(f"{name} must not run from negative to other entries, got {selector}")
    shift = size if first < 0 else 0
    return range(first + shift, last + shift + 1, selector.step)


def view_of(input: Tensor, channels: slice | range, batch: slice | range | None) -> Tensor:
    """The part of the input that slices and ranges name, as a view."""
    columns = positions(channels, input.shape[1], "channels")
    part = slice(columns.start, columns.stop, columns.step)
    if batch is None:
        return input[:, part]
    rows = positions(batch, input.shape[0], "batch")
    return input[rows.start : rows.stop : rows.step, part]


def index_of(selector: slice | range | Tensor, size: int, name: str, input: Tensor, most_dims: int = 1) -> Tensor:
    """The entries of an axis of `size` that a selector names, as an int32 or int64 tensor; values are not looked at.

    Raises:
        TypeError: no slice, range or tensor of bool or integers.
        ValueError: a bool tensor of another shape than `[size]`, an index of other dimensions, another device.
        IndexError: a range that leaves the axis.
    """
    if not isinstance(selector, Tensor):
        entries = positions(selector, size, name)
        return torch.arange(entries.start, entries.stop, entries.step, device=input.device)
    _check.same_device(name, selector, "input", input)
    if selector.dtype == torch.bool:
        if selector.dim() != 1 or selector.shape[0] != size:
            hint = "; channel_select takes a mask for each sample" if selector.dim() == 2 else ""
            raise ValueError(f"a bool {name} must have shape {[size]}, got {describe(selector)}{hint}")
        return selector.nonzero().squeeze(1)
    if selector.dtype not in INTEGERS:
        raise TypeError(f"{name} must be bool or integers, got {describe(selector)}")
    if not 1 <= selector.dim() <= most_dims:
        shapes = "[K] or [B, K]" if most_dims == 2 else "[B]"
        raise ValueError(f"{name} must have shape {shapes}, got {describe(selector)}")
    if selector.dtype in (torch.int32, torch.int64):
        return selector
    index = selector.to(torch.int64)
    if selector.dtype == torch.uint64:  # what does not fit becomes out of range instead of negative
        index = index.where(index >= 0, torch.iinfo(torch.int64).max)
    return index


def check_rows(channels: Tensor, samples: int) -> None:
    """Raises ValueError unless an index a sample has as many rows as there are selected samples."""
    if channels.dim() == 2 and channels.shape[0] != samples:
        raise ValueError(
            f"channels must have shape [K] or [{samples}, K] for {samples} samples, got {describe(channels)}"
        )


def values_are_known(t: Tensor) -> bool:
    """True where values may be looked at: on the CPU, in code that nothing traces or transforms."""
    return (
        t.device.type == "cpu" and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    )


def check_range(index: Tensor, size: int, name: str, input: Tensor) -> None:
    """Raises IndexError where the index leaves its axis of `size` entries."""
    outside = index[(index < -size) | (index >= size)]
    if outside.numel() > 0:
        raise IndexError(
            f"{name} has index {outside[0].item()}, out of range for size {size}: "
            f"{name} is {describe(index)}, input is {describe(input)}"
        )


def check_unique(index: Tensor, size: int, name: str, input: Tensor) -> None:
    """Raises ValueError where the index, in range, names an entry twice in a row."""
    ordered = torch.where(index < 0, index + size, index).sort(-1).values
    twice = ordered[..., 1:][ordered[..., 1:] == ordered[..., :-1]]
    if twice.numel() > 0:
        raise ValueError(
            f"{name} must name each entry once, got index {twice[0].item()} twice: "
            f"{name} is {describe(index)}, input is {describe(input)}"
        )


def active_first(active: Tensor) -> Tensor:
    """int64 `[N, C]`: the channels that are true in each row of `active`, then the others, both in rising order.

    By counting. A stable sort of the flags says the same, but torch 2.13's inductor compiles one wrongly in a gate.
    """
    place = active.long().cumsum(1)
    place = torch.where(active, place - 1, place[:, -1:] - place + torch.arange(active.shape[1], device=active.device))
    columns = torch.arange(active.shape[1], device=active.device).expand_as(place)
    return torch.zeros_like(place).scatter(1, place, columns)
