"""The rules of ops that move elements: reshaping, transposing, slicing, concatenating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .labels import Constant, Dim

if TYPE_CHECKING:
    from .trace import Trace


def _view(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    """A dim that stays whole keeps its atoms; where several become one, their channels' atoms are repeated in it.

    A dim of channels that is split stays, and so do several that are merged.
    """
    x = a["self"]
    if x.shape == out.shape:
        return _carry(trace, x, out, list(range(x.dim())))
    if x.numel() == 0:
        return False
    labels = trace.labels(x)
    dims: list[Dim] = [None] * out.dim()
    constant = None
    for d, size in enumerate(x.shape):
        if size == 1:
            trace.atoms.stay(labels.dims[d])
    for before, after in _runs(x.shape, out.shape):
        named = [d for d in before if labels.dims[d] is not None]
        if len(after) != 1 or len(named) > 1:
            for d in named:
                trace.atoms.stay(labels.dims[d])
            continue
        sizes = [x.shape[d] for d in before]
        if named:
            atoms, places = labels.dims[named[0]], _places(sizes, before.index(named[0]))
            assert atoms is not None
            dims[after[0]] = tuple(atoms[i] for i in places.tolist())
        if labels.constant is not None and labels.constant.dim in before:
            places = _places(sizes, before.index(labels.constant.dim))
            constant = Constant(after[0], labels.constant.values[places])
    if labels.constant is not None and labels.constant.dim is None:
        constant = labels.constant
    trace.set(out, tuple(dims), constant)
    return True


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The dims of two shapes of one size, without those of size 1, in the shortest runs that hold the same elements."""
    left, right = ([d for d, size in enumerate(shape) if size != 1] for shape in (before, after))
    runs = []
    while left:
        old, new = [left.pop(0)], [right.pop(0)]
        while (have := math.prod(before[d] for d in old)) != (want := math.prod(after[d] for d in new)):
            if have < want:
                old.append(left.pop(0))
            else:
                new.append(right.pop(0))
        runs.append((old, new))
    return runs


def _places(sizes: list[int], dim: int) -> Tensor:
    """Where each element of dims that are merged was along one of them."""
    return torch.arange(math.prod(sizes)) // math.prod(sizes[dim + 1 :]) % sizes[dim]


def _carry(trace: Trace, x: Tensor, out: Tensor, order: Sequence[int | None]) -> bool:
    """The result's dims are those of `x` in another order, None for new ones of size 1; others were dropped."""
    labels = trace.labels(x)
    for d in set(range(x.dim())) - set(order):
        trace.atoms.stay(labels.dims[d])
    constant = labels.constant
    if constant is not None and constant.dim is not None:
        constant = Constant(order.index(constant.dim), constant.values) if constant.dim in order else None
    source = labels.source and (labels.source[0], tuple(None if d is None else labels.source[1][d] for d in order))
    trace.set(out, tuple(None if d is None else labels.dims[d] for d in order), constant, source)
    return True


def _permute(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    return _carry(trace, a["self"], out, [d % out.dim() for d in a["dims"]])


def _transpose(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    order: list[int | None] = list(range(out.dim()))
    if order:
        d, e = a["dim0"] % out.dim(), a["dim1"] % out.dim()
        order[d], order[e] = order[e], order[d]
    return _carry(trace, a["self"], out, order)


def _t(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    return _carry(trace, a["self"], out, list(range(out.dim()))[::-1])


def _unsqueeze(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    order: list[int | None] = list(range(out.dim() - 1))
    order.insert(a["dim"] % out.dim(), None)
    return _carry(trace, a["self"], out, order)


def _squeeze(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    x = a["self"]
    chosen = a.get("dim", range(x.dim()))
    gone = {d % x.dim() for d in (chosen if isinstance(chosen, (list, tuple, range)) else [chosen])}
    return _carry(trace, x, out, [d for d in range(x.dim()) if d not in gone or x.shape[d] != 1])


def _expand(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    x = a["self"]
    labels, new = trace.labels(x), out.dim() - x.dim()
    dims: list[Dim] = [None] * out.dim()
    for d in range(x.dim()):
        if x.shape[d] == out.shape[d + new]:
            dims[d + new] = labels.dims[d]
        else:
            trace.atoms.stay(labels.dims[d])
    constant = labels.constant
    if constant is not None and constant.dim is not None:
        same = x.shape[constant.dim] == out.shape[constant.dim + new]
        constant = Constant(constant.dim + new, constant.values) if same else None
    trace.set(out, tuple(dims), constant)
    return True


def _part(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    """Slices and splits: channels that are counted off must stay; of other dims any part will do."""
    x, d = a["self"], a["dim"] % max(1, a["self"].dim())
    labels = trace.labels(x)
    parts = [out] if isinstance(out, Tensor) else out
    whole = len(parts) == 1 and parts[0].shape == x.shape
    constant = labels.constant
    if not whole:
        trace.atoms.stay(labels.dims[d])
        constant = None if constant is not None and constant.dim == d else constant
    for part in parts:
        trace.set(part, tuple(None if e == d and not whole else dim for e, dim in enumerate(labels.dims)), constant)
    return True


def _select(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    x = a["self"]
    d = a["dim"] % x.dim()
    order: list[int | None] = [e for e in range(x.dim()) if e != d]
    results = [out] if isinstance(out, Tensor) else out
    return all(_carry(trace, x, one, order) for one in results)


def _cat(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    parts, d = a["tensors"], a["dim"] % max(1, out.dim())
    if any(t.dim() != out.dim() for t in parts):
        return False
    labels = [trace.labels(t) for t in parts]
    dims: list[Dim] = []
    for e in range(out.dim()):
        own = [known.dims[e] for known in labels]
        named = own[0]
        if e != d:
            for other in own[1:]:
                named = trace.atoms.join(named, other)
        elif any(one is not None for one in own):
            named = sum(((0,) * t.shape[d] if one is None else one for t, one in zip(parts, own, strict=True)), ())
        dims.append(named)
    values = torch.cat([known.values(d, t.shape[d]) for t, known in zip(parts, labels, strict=True)])
    trace.set(out, tuple(dims), None if bool(values.isnan().all()) else Constant(d, values))
    return True


def _pad(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    """Padding by a number: channels that it adds stay."""
    x, pad = a["self"], a["pad"]
    labels, dims = trace.labels(x), list(trace.labels(x).dims)
    constant = labels.constant
    for i in range(len(pad) // 2):
        before, after, d = pad[2 * i], pad[2 * i + 1], x.dim() - 1 - i
        if (before, after) == (0, 0):
            continue
        if before < 0 or after < 0:
            return False
        named = dims[d]
        if named is not None:
            dims[d] = (0,) * before + named + (0,) * after
        if constant is not None and constant.dim == d:
            values = F.pad(constant.values, (before, after), value=a["value"] or 0.0)
            constant = Constant(d, values)
        elif constant is not None and constant.dim is not None:
            values = torch.where(constant.values == (a["value"] or 0.0), constant.values, torch.nan)
            constant = Constant(constant.dim, values)
        else:
            constant = None
    trace.set(out, tuple(dims), constant)
    return True


RULES = {
    "view": _view,
    "_unsafe_view": _view,
    "_reshape_alias": _view,
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _part,
    "split": _part,
    "split_with_sizes": _part,
    "select": _select,
    "unbind": _select,
    "cat": _cat,
    "constant_pad_nd": _pad,
}
