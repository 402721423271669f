"""The rules of products with a weight, where channels may be cut because nothing of them is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .labels import Labels, Reader

if TYPE_CHECKING:
    from .trace import Trace

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrix_product(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    """`x @ w` and `bias + x @ w`, where `w` is a parameter or computed from some, possibly transposed."""
    x, w = a.get("mat1", a["self"]), a["mat2"]
    bias = a["self"] if "mat1" in a else None
    of_x, of_w = trace.labels(x), trace.labels(w)
    if of_w.dims == (None, None) or (of_w.source is None and of_x.source is not None):
        return False  # two activations, or a weight from the left
    if bias is not None and (bias.dim() != 1 or a["beta"] != 1 or a["alpha"] != 1):
        return False
    inputs, outputs = trace.atoms.join(of_x.dims[1], of_w.dims[0]), of_w.dims[1]
    if bias is not None:
        outputs = trace.atoms.join(outputs, trace.labels(bias).dims[0])
    columns, rows = (None, None) if of_w.source is None else of_w.source[1]
    active = _all(w.shape[1], w.shape[0])
    mask = _mask(trace, of_w)
    if mask is not None and {rows, columns} == {0, 1}:
        active = mask if rows == 0 else mask.t()
    owner = _owner(trace, of_w, bias, nn.Linear) if rows == 0 else None
    constants = _constants(of_x, of_w, x.shape[1])
    _read(trace, of_w, owner, active, inputs, outputs, constants, False, 1)
    still = _still(active, constants, False, 1, bias is None or _known(trace, bias))
    trace.set(out, (of_x.dims[0], outputs), trace.observed(out, 1, still))
    return True


def convolution(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    """Convolutions of any rank, in groups too."""
    x, w, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    of_x, of_w = trace.labels(x), trace.labels(w)
    if a["transposed"]:
        return _transposed(trace, a, out)
    active = _all(*w.shape[:2])
    mask = _mask(trace, of_w)
    if mask is not None:
        active = mask.flatten(2).any(2)
    owner = _owner(trace, of_w, bias, _CONVOLUTIONS)
    outputs = of_w.dims[0]
    if bias is not None:
        outputs = trace.atoms.join(outputs, trace.labels(bias).dims[0])
    if groups == 1:
        inputs = trace.atoms.join(of_x.dims[1], of_w.dims[1])
    else:
        # A weight's second dim is the place in its group: what is cut there is found from the channels themselves.
        trace.atoms.stay(of_w.dims[1])
        inputs = of_x.dims[1]
        others = [r for r in trace.readers if r.weight is not None and of_w.source and r.weight is of_w.source[0]]
        if owner is None or others:
            trace.atoms.stay(inputs)
            trace.atoms.stay(outputs)
    padded = any(a["padding"])
    constants = _constants(of_x, of_w, x.shape[1])
    _read(trace, of_w, owner, active, inputs, outputs, constants, padded, groups)
    for other in trace.readers[:-1] if groups > 1 else ():
        if other.weight is not None and other.weight is trace.readers[-1].weight:
            trace.atoms.stay(other.inputs)
    still = _still(active, constants, padded, groups, bias is None or _known(trace, bias))
    trace.set(out, (of_x.dims[0], outputs) + (None,) * (out.dim() - 2), trace.observed(out, 1, still))
    return True


def _transposed(trace: Trace, a: dict[str, Any], out: Tensor) -> bool:
    """A transposed convolution, whose weight has the inputs first; at the border fewer places of a constant add up."""
    x, w, bias = a["input"], a["weight"], a["bias"]
    of_x, of_w = trace.labels(x), trace.labels(w)
    if a["groups"] != 1:
        return False
    inputs, outputs = trace.atoms.join(of_x.dims[1], of_w.dims[0]), of_w.dims[1]
    if bias is not None:
        outputs = trace.atoms.join(outputs, trace.labels(bias).dims[0])
    constants = _constants(of_x, of_w, x.shape[1])
    _read(trace, of_w, None, _all(w.shape[1], w.shape[0]), inputs, outputs, constants, True, 1)
    trace.set(out, (of_x.dims[0], outputs) + (None,) * (out.dim() - 2))
    return True


def _all(rows: int, columns: int) -> Tensor:
    return torch.ones((), dtype=torch.bool).expand(rows, columns)


def by_groups(columns: Tensor, groups: int, rows: int) -> Tensor:
    """What is given for each input channel, as each row of a grouped weight meets it: `[out, in / groups]`."""
    return columns.view(groups, -1).repeat_interleave(rows // groups, 0)


def _read(
    trace: Trace,
    of_w: Labels,
    owner: nn.Module | None,
    active: Tensor,
    inputs: Any,
    outputs: Any,
    constants: Tensor,
    padded: bool,
    groups: int,
) -> None:
    rows, columns = active.shape[0], active.shape[1] * groups
    weight = None if of_w.source is None else of_w.source[0]
    stay = (0,)  # the atom of what is never cut
    trace.readers.append(
        Reader(weight, owner, active, inputs or stay * columns, outputs or stay * rows, constants, padded, groups)
    )


def _still(active: Tensor, constants: Tensor, padded: bool, groups: int, bias_known: bool) -> Tensor:
    """Bool `[out]`: the rows that add up constants alone."""
    known = (constants == 0) if padded else ~constants.isnan()
    return ~(active & ~by_groups(known, groups, len(active))).any(1) & bias_known


def _constants(of_x: Labels, of_w: Labels, size: int) -> Tensor:
    """What the channels hold, NaN where that says nothing of the product: a weight that is computed may change too, so
    that only zeros do."""
    values = of_x.values(1, size)
    return values if of_w.source is not None else torch.where(values == 0, values, torch.nan)


def _mask(trace: Trace, of_w: Labels) -> Tensor | None:
    return None if of_w.source is None else trace.masks.get(id(of_w.source[0]))


def _known(trace: Trace, t: Tensor) -> bool:
    """Whether no input changes a bias."""
    constant = trace.labels(t).constant
    return constant is not None and not math.isnan(float(constant.values.sum()))


def _owner(trace: Trace, of_w: Labels, bias: Tensor | None, kinds: Any) -> nn.Module | None:
    """The plain layer that called the product with its own parameters."""
    module: Any = trace.calls.innermost()
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if of_w.source is None or type(module) not in kinds or "forward" in module.__dict__:
        return None
    # A linear layer may add its bias in an op of its own.
    mine = module.weight is of_w.source[0] and (bias is None or bias is module.bias)
    return module if mine else None
