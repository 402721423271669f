"""What becomes of channels in each op: products, norms and elementwise ops. Ops that move elements are in `moves`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from . import moves
from .labels import Constant, Together
from .products import convolution, matrix_product

if TYPE_CHECKING:
    from .trace import Trace

Rule = Callable[["Trace", dict[str, Any], Any], bool]  # false: the op is used in a way that the rule does not know

# Elementwise ops that torch does not tag as such.
_ELEMENTWISE = {"hardswish", "log_sigmoid_forward", "_prelu_kernel", "_to_copy", "detach", "alias", "hardsigmoid"}
_COPIES = {"_to_copy", "detach", "alias", "clone", "lift_fresh"}


def note(trace: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Applies the rule of an op; without one, all channels of its operands stay."""
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    if schema.is_mutable:
        for argument, value in zip(schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                trace.overwritten(value)
    operands = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
    rule = _RULES.get(name)
    if rule is None and _is_elementwise(func, name):
        done = _elementwise(trace, name.removesuffix("_"), operands, out)
    else:
        done = rule is not None and "out" not in kwargs and rule(trace, _bound(schema, args, kwargs), out)
    if not done:
        for t in operands:
            trace.stay(t)
            if schema.is_mutable:
                trace.set(t, (None,) * t.dim())
        for t in tree_iter(out):
            if isinstance(t, Tensor):
                trace.set(t, (None,) * t.dim())


def _bound(schema: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name, with the defaults that a call left out."""
    values = {a.name: a.default_value for a in schema.arguments}
    values.update((a.name, value) for a, value in zip(schema.arguments, args, strict=False))
    return {**values, **kwargs}


def _is_elementwise(func: Any, name: str) -> bool:
    random = torch.Tag.nondeterministic_seeded in func.tags
    return not random and (torch.Tag.pointwise in func.tags or name.removesuffix("_") in _ELEMENTWISE)


def _elementwise(trace: Trace, name: str, operands: list[Tensor], out: Any) -> bool:
    """Operands broadcast to the result. A result is constant where all operands are, a product also where one is 0."""
    results = [t for t in tree_iter(out) if isinstance(t, Tensor)]
    result = results[0]
    if torch.broadcast_shapes(*(t.shape for t in operands)) != result.shape:
        return False
    labels = [trace.labels(t) for t in operands]
    dims = []
    for d in range(result.dim()):
        named, size = None, result.shape[d]
        first = True
        for t, known in zip(operands, labels, strict=True):
            own = d - result.dim() + t.dim()
            if own < 0:
                continue
            if t.shape[own] != size:
                trace.atoms.stay(known.dims[own])
            else:
                named = known.dims[own] if first else trace.atoms.join(named, known.dims[own])
                first = False
        dims.append(named)
    constant = _constant(trace, name, operands, result)
    source = labels[0].source if name in _COPIES else None
    for t in results:
        if t.shape == result.shape:
            trace.set(t, tuple(dims), constant if t is result else None, source)
        else:
            trace.set(t, (None,) * t.dim())
    return True


def _constant(trace: Trace, name: str, operands: list[Tensor], out: Tensor) -> Constant | None:
    found = [(t, trace.labels(t).constant) for t in operands]
    along = {
        constant.dim - t.dim() + out.dim() for t, constant in found if constant is not None and constant.dim is not None
    }
    if len(along) != 1:
        return None
    dim = along.pop()
    size = out.shape[dim]
    still, zero = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for t in operands:
        values = trace.labels(t).values(dim - out.dim() + t.dim(), size)
        if len(values) != size:  # broadcast along the dim
            return None
        still &= ~values.isnan()
        zero |= values == 0
    return trace.observed(out, dim, still | zero if name == "mul" else still)


def _batch_norm(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    x, result = a["input"], next(t for t in tree_iter(out) if isinstance(t, Tensor))
    labels = trace.labels(x)
    dims = list(labels.dims)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            dims[1] = trace.atoms.join(dims[1], trace.labels(a[name]).dims[0])
    still = ~labels.values(1, x.shape[1]).isnan()
    trace.set(result, tuple(dims), trace.observed(result, 1, still))
    return True


def _layer_norm(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    """Every feature counts in the mean and the variance, a zero too: those that are normed together stay."""
    labels, normed = trace.labels(a["input"]), len(a["normalized_shape"])
    for dim in labels.dims[-normed:]:
        trace.atoms.stay(dim)
    for name in ("weight", "bias"):
        if a[name] is not None:
            trace.stay(a[name])
    trace.set(out[0], labels.dims[:-normed] + (None,) * normed)
    return True


def _group_norm(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    x, groups, module = a["input"], a["group"], trace.calls.innermost()
    labels = trace.labels(x)
    dims = list(labels.dims)
    if type(module) is not nn.GroupNorm or dims[1] is None:
        return False
    for name in ("weight", "bias"):
        if a[name] is not None:
            dims[1] = trace.atoms.join(dims[1], trace.labels(a[name]).dims[0])
    for other in trace.together:
        if other.module is module:  # called again
            dims[1] = trace.atoms.join(dims[1], other.channels)
    if dims[1] is not None:
        trace.together.append(Together(module, dims[1], groups))
    still = ~labels.values(1, x.shape[1]).isnan()
    still = still.view(groups, -1).all(1).repeat_interleave(x.shape[1] // groups)
    trace.set(out[0], tuple(dims), trace.observed(out[0], 1, still))
    return True


def _reduction(trace: Trace, a: dict[str, Any], out: Any, sums: bool = False) -> bool:
    x, reduced = a["self"], a.get("dim")
    labels = trace.labels(x)
    if reduced is None or len(reduced) == 0:
        return False
    gone = {d % x.dim() for d in reduced}
    for d in gone:
        trace.atoms.stay(labels.dims[d])
    kept: list[int | None] = [None if d in gone else d for d in range(x.dim()) if a["keepdim"] or d not in gone]
    dims = tuple(None if d is None else labels.dims[d] for d in kept)
    constant = None
    if labels.constant is not None and labels.constant.dim is not None and labels.constant.dim in kept:
        values = labels.constant.values
        still = (values == 0) if sums else ~values.isnan()  # how many are added depends on the input's size
        constant = trace.observed(out, kept.index(labels.constant.dim), still)
    trace.set(out, dims, constant)
    return True


def _softmax(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    labels, d = trace.labels(a["self"]), a["dim"] % max(1, a["self"].dim())
    if not labels.dims:
        return False
    trace.atoms.stay(labels.dims[d])
    trace.set(out, tuple(None if e == d else dim for e, dim in enumerate(labels.dims)))
    return True


def _windows(spatial: int) -> Rule:
    """Pooling, resizing and padding by the image's own pixels: each channel of an image alone."""

    def rule(trace: Trace, a: dict[str, Any], out: Any) -> bool:
        x = a["self"]
        labels, outer = trace.labels(x), x.dim() - spatial
        for dim in labels.dims[outer:]:
            trace.atoms.stay(dim)
        results = [t for t in tree_iter(out) if isinstance(t, Tensor)]
        constant = None
        if labels.constant is not None and labels.constant.dim is not None and labels.constant.dim < outer:
            values = labels.constant.values
            uneven = a.get("count_include_pad") is not None and (any(a["padding"]) or a["divisor_override"] is not None)
            constant = trace.observed(results[0], labels.constant.dim, (values == 0) if uneven else ~values.isnan())
        for t in results:
            trace.set(t, labels.dims[:outer] + (None,) * spatial, constant if t is results[0] else None)
        return True

    return rule


def _sum(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    return _reduction(trace, a, out, sums=True)


def _embedding(trace: Trace, a: dict[str, Any], out: Any) -> bool:
    rows, columns = trace.labels(a["weight"]).dims
    trace.atoms.stay(rows)
    trace.set(out, (*trace.labels(a["indices"]).dims, columns))
    return True


_RULES: dict[str, Rule] = {
    "convolution": convolution,
    "mm": matrix_product,
    "addmm": matrix_product,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "mean": _reduction,
    "amax": _reduction,
    "amin": _reduction,
    "sum": _sum,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "embedding": _embedding,
    **{f"max_pool{n}d_with_indices": _windows(n) for n in (2, 3)},
    **{f"avg_pool{n}d": _windows(n) for n in (2, 3)},
    **{f"_adaptive_avg_pool{n}d": _windows(n) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": _windows(n) for n in (2, 3)},
    **{f"upsample_nearest{n}d": _windows(n) for n in (1, 2, 3)},
    "upsample_bilinear2d": _windows(2),
    "upsample_bicubic2d": _windows(2),
    **{f"reflection_pad{n}d": _windows(n) for n in (1, 2, 3)},
    **{f"replication_pad{n}d": _windows(n) for n in (1, 2, 3)},
    **moves.RULES,
}
