"""`masked_linear` with a binary mask, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ._channels_alone import LEAST_ROWS, product_alone, weight_grad_alone
from ._launch import op, plain_op
from ._linear import outer_product, product
from ._operands import as_rows, check_bits, check_fit, check_floating, check_same_rows, check_shape, of_rows
from ._plan import linear_plan
from ._planner import FEW_ROWS, cut_outer, cut_product
from .kernels.product import COLUMN_BITS, ROW_BITS
from .masked_linear_decode import decode


@op
def masked_linear(input: Tensor, weight: Tensor, bits: Tensor, plan: list[Tensor], bias: Tensor | None) -> Tensor:
    """`input @ where(mask, weight, 0).T + bias`."""
    name = "masked_linear"
    check_floating(name, input=input, weight=weight, bias=bias)
    check_fit(name, "input", input, weight.shape[-1], weight)
    out, inp = weight.shape
    if bias is not None:
        check_shape(name, "bias", bias, (out,))
    bits = check_bits(name, bits, out, inp, input)
    found = linear_plan(name, plan, out, inp, input.dtype)
    x = as_rows(input)
    if found.packed is not None and x.shape[0] <= FEW_ROWS:
        y = decode(x, bits, found.packed, out, bias)
    elif found.active is not None and x.shape[0] >= LEAST_ROWS:
        y = product_alone(x, weight, found.active[0], found.active[1], bias)
    else:
        y = product(x, weight, ROW_BITS, bits, found.of_rows, bias)
    return of_rows(y, input)


@op
def masked_linear_input_grad(grad: Tensor, weight: Tensor, bits: Tensor, plan: list[Tensor]) -> Tensor:
    """`grad @ where(mask, weight, 0)`."""
    name = "masked_linear_input_grad"
    check_floating(name, grad=grad, weight=weight)
    check_fit(name, "grad", grad, weight.shape[0], weight)
    out, inp = weight.shape
    bits = check_bits(name, bits, out, inp, grad)
    found = linear_plan(name, plan, out, inp, grad.dtype)
    g = as_rows(grad)
    if found.active is not None and g.shape[0] >= LEAST_ROWS:
        y = product_alone(g, weight.T, found.active[1], found.active[0], None)
    else:
        y = product(g, weight.T, COLUMN_BITS, bits.T, found.of_channels)
    return of_rows(y, grad)


@op
def masked_linear_weight_grad(grad: Tensor, input: Tensor, bits: Tensor, plan: list[Tensor]) -> Tensor:
    """`where(mask, grad.T @ input, 0)`, rows of all leading dimensions together."""
    name = "masked_linear_weight_grad"
    check_floating(name, grad=grad, input=input)
    check_same_rows(name, grad, input)
    out, inp = grad.shape[-1], input.shape[-1]
    bits = check_bits(name, bits, out, inp, grad)
    found = linear_plan(name, plan, out, inp, grad.dtype)
    g, x = as_rows(grad), as_rows(input)
    if found.active is not None and g.shape[0] >= LEAST_ROWS:
        return weight_grad_alone(g, x, found.active[0], found.active[1])
    return outer_product(g, x, ROW_BITS, bits)[0]


@plain_op
def masked_linear_choice(
    direction: str,
    batch: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    channels: bool,
    lists: bool,
    multiprocessors: int,
    capability: int,
) -> str:
    """The family of tiles, and the parts of the depth, by the functions that choose in a call."""
    if channels and batch >= LEAST_ROWS:
        return "library"
    if direction == "weight_grad":
        return str(cut_outer(batch, out_features, in_features, dtype, multiprocessors))
    n, k = (out_features, in_features) if direction == "forward" else (in_features, out_features)
    return str(cut_product(batch, n, k, dtype, multiprocessors))
