"""`compact_conv2d`: `masked_conv2d` of a weight of which there are the active values alone, and its two gradients.

As `compact_linear`: a pass expands the values and drops the dense weight, and the three ops are closed under
differentiation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .active_weights import Ints, define
from .autograd import Product, shape_of
from .masked_conv2d import differentiable, image_like, output_size

_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt[] shape"


class CompactConv2d(NamedTuple):
    """The three ops of one namespace, differentiable."""

    compact_conv2d: Product
    compact_conv2d_input_grad: Product
    compact_conv2d_values_grad: Product


def products(namespace: str) -> CompactConv2d:
    """Defines a namespace's ops, behind its masked and active ones, and makes them differentiable, once.

    Inputs in order, behind them geometry = (stride, padding, dilation, groups) and the weight's shape:
    (input, values, bits, plan, bias), (grad, values, bits, plan, input_size), (grad, input, bits, plan, count).
    """
    ops: Any = getattr(torch.ops, namespace)

    def compact_conv2d(
        input: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], bias: Tensor | None, *rest: Any
    ) -> Tensor:
        *geometry, shape = rest
        return ops.masked_conv2d(input, ops.expand_active(values, bits, shape), bits, plan, bias, *geometry)

    def compact_conv2d_input_grad(
        grad: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], input_size: Ints, *rest: Any
    ) -> Tensor:
        *geometry, shape = rest
        weight = ops.expand_active(values, bits, shape)
        return ops.masked_conv2d_input_grad(grad, weight, bits, plan, input_size, *geometry)

    def compact_conv2d_values_grad(
        grad: Tensor, input: Tensor, bits: Tensor, plan: list[Tensor], count: int, *rest: Any
    ) -> Tensor:
        *geometry, shape = rest
        weight_grad = ops.masked_conv2d_weight_grad(grad, input, bits, plan, shape[2:], *geometry)
        return ops.collect_active(weight_grad, bits, count)

    def output_like(
        input: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], bias: Tensor | None, *geometry: Any
    ) -> Tensor:
        stride, padding, dilation, _, shape = geometry
        size = output_size(input.shape[2:], shape[2:], stride, padding, dilation)
        return image_like(input, (input.shape[0], shape[0], *size))

    def input_like(
        grad: Tensor, values: Tensor, bits: Tensor, plan: list[Tensor], input_size: Ints, *geometry: Any
    ) -> Tensor:
        *_, groups, shape = geometry
        return image_like(grad, (grad.shape[0], shape[1] * groups, *input_size))

    define(
        namespace,
        f"compact_conv2d(Tensor input, Tensor values, Tensor bits, Tensor[] plan, Tensor? bias, {_GEOMETRY}) -> Tensor",
        compact_conv2d,
        output_like,
    )
    define(
        namespace,
        "compact_conv2d_input_grad(Tensor grad, Tensor values, Tensor bits, Tensor[] plan, SymInt[] input_size, "
        f"{_GEOMETRY}) -> Tensor",
        compact_conv2d_input_grad,
        input_like,
    )
    define(
        namespace,
        "compact_conv2d_values_grad(Tensor grad, Tensor input, Tensor bits, Tensor[] plan, SymInt count, "
        f"{_GEOMETRY}) -> Tensor",
        compact_conv2d_values_grad,
        lambda grad, input, bits, plan, count, *geometry: grad.new_empty((count,)),
    )
    made = differentiable(namespace, "compact_conv2d", "values", lambda values: shape_of(values)[0])
    return CompactConv2d(*made)


compact_conv2d, compact_conv2d_input_grad, compact_conv2d_values_grad = products("maskfuse")
