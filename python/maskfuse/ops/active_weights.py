"""`expand_active` and `collect_active`: the active weights alone, row after row, from and to a weight of full size.

Both are linear, and each is the other's adjoint. Written with what a namespace has for the bits and with torch's own
ops, so one definition serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library as _library
from .autograd import Product, multilinear, shape_of
from .vmap import vmap_rows

Ints = Sequence[int]

_libraries: dict[str, torch.library.Library] = {}  # kept, as what is registered goes with it


def define(namespace: str, schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Makes `function` an op of a namespace, on every device and below autograd."""
    library = _libraries.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::{name}", fake)


def rows_columns(shape: Ints) -> tuple[int, int]:
    """Rows and columns of the bits of a weight `[out, in, ...]`, or of one row."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


class ActiveWeights(NamedTuple):
    """The two ops of one namespace, differentiable."""

    expand_active: Product
    collect_active: Product


def products(namespace: str) -> ActiveWeights:
    """Defines a namespace's ops and makes them differentiable, once.

    Inputs in order: (values, bits, shape), (weight, bits, count).
    """
    ops: Any = getattr(torch.ops, namespace)

    def expand_active(values: Tensor, bits: Tensor, shape: Ints) -> Tensor:
        active = ops.mask_unpack(bits, rows_columns(shape)[1]).reshape(shape)
        return values.new_zeros(shape).masked_scatter_(active, values)

    def collect_active(weight: Tensor, bits: Tensor, count: int) -> Tensor:
        rows, columns = rows_columns(weight.shape)
        flat = weight.reshape(rows, columns)
        if namespace == "maskfuse" and weight.is_cpu and columns:
            # Packing without a plan: row after row, with a few elements of padding behind.
            return ops.masked_linear_pack(flat.contiguous(), bits, [])[0][:count]
        active = ops.mask_unpack(bits, columns).reshape(-1)
        # The number is known, so nothing waits for the device.
        return flat.reshape(-1).index_select(0, torch.nonzero_static(active, size=count).squeeze(1))

    define(
        namespace,
        "expand_active(Tensor values, Tensor bits, SymInt[] shape) -> Tensor",
        expand_active,
        lambda values, bits, shape: values.new_empty(shape),
    )
    define(
        namespace,
        "collect_active(Tensor weight, Tensor bits, SymInt count) -> Tensor",
        collect_active,
        lambda weight, bits, count: weight.new_empty((count,)),
    )
    expand = multilinear(namespace, "expand_active", {0: lambda v, grad: collect(grad, v[1], shape_of(v[0])[0])})
    collect = multilinear(namespace, "collect_active", {0: lambda v, grad: expand(grad, v[1], list(shape_of(v[0])))})
    vmap_rows(namespace, "expand_active", -1)
    vmap_rows(namespace, "collect_active", -1)
    return ActiveWeights(expand, collect)


expand_active, collect_active = products("maskfuse")
