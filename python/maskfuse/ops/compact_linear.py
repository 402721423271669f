"""`compact_linear`: `masked_linear` of a weight of which there are the active values alone, and its two gradients.

A pass expands the values, runs the masked op on them and drops the dense weight, so none is kept for backward. The
three ops are closed under differentiation: every gradient of one is another of the three.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .active_weights import Ints, define
from .autograd import Product, multilinear, shape_of
from .vmap import vmap_rows


class CompactLinear(NamedTuple):
    """The three ops of one namespace, differentiable."""

    compact_linear: Product
    compact_linear_input_grad: Product
    compact_linear_values_grad: Product


def products(namespace: str) -> CompactLinear:
    """Defines a namespace's ops, behind its masked and active ones, and makes them differentiable, once.

    Inputs in order, where `shape` is the weight's and `count` the number of values: (input, values, bits, plan, bias,
    shape), (grad, values, bits, plan, shape), (grad, input, bits, plan, shape, count).
    """
    ops: Any = getattr(torch.ops, namespace)

    def compact_linear(
        input: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], bias: Tensor | None, shape: Ints
    ) -> Tensor:
        return ops.masked_linear(input, ops.expand_active(values, bits, shape), bits, plan, bias)

    def compact_linear_input_grad(
        grad: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], shape: Ints
    ) -> Tensor:
        return ops.masked_linear_input_grad(grad, ops.expand_active(values, bits, shape), bits, plan)

    def compact_linear_values_grad(
        grad: Tensor, input: Tensor, bits: Tensor, plan: list[Tensor], shape: Ints, count: int
    ) -> Tensor:
        return ops.collect_active(ops.masked_linear_weight_grad(grad, input, bits, plan), bits, count)

    define(
        namespace,
        "compact_linear(Tensor input, Tensor values, Tensor bits, Tensor[] plan, Tensor? bias, SymInt[] shape) "
        "-> Tensor",
        compact_linear,
        lambda input, values, bits, plan, bias, shape: input.new_empty((*input.shape[:-1], shape[0])),
    )
    define(
        namespace,
        "compact_linear_input_grad(Tensor grad, Tensor values, Tensor bits, Tensor[] plan, SymInt[] shape) -> Tensor",
        compact_linear_input_grad,
        lambda grad, values, bits, plan, shape: grad.new_empty((*grad.shape[:-1], shape[1])),
    )
    define(
        namespace,
        "compact_linear_values_grad(Tensor grad, Tensor input, Tensor bits, Tensor[] plan, SymInt[] shape, "
        "SymInt count) -> Tensor",
        compact_linear_values_grad,
        lambda grad, input, bits, plan, shape, count: grad.new_empty((count,)),
    )
    forward = multilinear(
        namespace,
        "compact_linear",
        {
            0: lambda v, grad: input_grad(grad, v[1], v[2], v[3], v[5]),
            1: lambda v, grad: values_grad(grad, v[0], v[2], v[3], v[5], shape_of(v[1])[0]),
        },
        bias=4,
    )
    input_grad = multilinear(
        namespace,
        "compact_linear_input_grad",
        {
            0: lambda v, grad: forward(grad, v[1], v[2], v[3], None, v[4]),
            1: lambda v, grad: values_grad(v[0], grad, v[2], v[3], v[4], shape_of(v[1])[0]),
        },
    )
    values_grad = multilinear(
        namespace,
        "compact_linear_values_grad",
        {
            0: lambda v, grad: forward(v[1], grad, v[2], v[3], None, v[4]),
            1: lambda v, grad: input_grad(v[0], grad, v[2], v[3], v[4]),
        },
    )
    vmap_rows(namespace, "compact_linear", 0)
    vmap_rows(namespace, "compact_linear_input_grad", 0)
    vmap_rows(namespace, "compact_linear_values_grad", -1)  # a sum over rows: one result a sample
    return CompactLinear(forward, input_grad, values_grad)


compact_linear, compact_linear_input_grad, compact_linear_values_grad = products("maskfuse")
