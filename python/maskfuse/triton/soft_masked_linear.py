"""`soft_masked_linear`: a linear layer with a real-valued mask, and its gradients."""

from __future__ import annotations

from torch import Tensor

from ._launch import op
from ._linear import outer_product, product
from ._operands import as_rows, check_fit, check_floating, check_same_rows, check_shape, of_rows
from .kernels.product import FACTOR


@op
def soft_masked_linear(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """`input @ (weight * mask).T + bias`."""
    name = "soft_masked_linear"
    check_floating(name, input=input, weight=weight, mask=mask, bias=bias)
    check_fit(name, "input", input, weight.shape[-1], weight)
    check_shape(name, "mask", mask, weight.shape)
    if bias is not None:
        check_shape(name, "bias", bias, weight.shape[:1])
    return of_rows(product(as_rows(input), weight, FACTOR, mask, bias=bias), input)


@op
def soft_masked_linear_input_grad(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """`grad @ (weight * mask)`."""
    name = "soft_masked_linear_input_grad"
    check_floating(name, grad=grad, weight=weight, mask=mask)
    check_fit(name, "grad", grad, weight.shape[0], weight)
    check_shape(name, "mask", mask, weight.shape)
    return of_rows(product(as_rows(grad), weight.T, FACTOR, mask.T), grad)


@op
def soft_masked_linear_weight_grad(grad: Tensor, input: Tensor, factor: Tensor) -> Tensor:
    """`(grad.T @ input) * factor`, rows of all leading dimensions together."""
    name = "soft_masked_linear_weight_grad"
    check_floating(name, grad=grad, input=input, factor=factor)
    check_same_rows(name, grad, input)
    check_shape(name, "factor", factor, (grad.shape[-1], input.shape[-1]))
    return outer_product(as_rows(grad), as_rows(input), FACTOR, factor)[0]
