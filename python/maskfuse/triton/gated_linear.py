"""`gated_linear`: a linear layer whose weight is scaled by the sigmoid of scores, and its gradients."""

from __future__ import annotations

from torch import Tensor

from ._launch import op
from ._linear import outer_product, product
from ._operands import as_rows, check_fit, check_floating, check_same_rows, check_shape, of_rows
from .kernels.product import GATE


@op
def gated_linear(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None) -> Tensor:
    """`input @ (weight * sigmoid(scores)).T + bias`."""
    name = "gated_linear"
    check_floating(name, input=input, weight=weight, scores=scores, bias=bias)
    check_fit(name, "input", input, weight.shape[-1], weight)
    check_shape(name, "scores", scores, weight.shape)
    if bias is not None:
        check_shape(name, "bias", bias, weight.shape[:1])
    return of_rows(product(as_rows(input), weight, GATE, scores, bias=bias), input)


@op
def gated_linear_input_grad(grad: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    """`grad @ (weight * sigmoid(scores))`."""
    name = "gated_linear_input_grad"
    check_floating(name, grad=grad, weight=weight, scores=scores)
    check_fit(name, "grad", grad, weight.shape[0], weight)
    check_shape(name, "scores", scores, weight.shape)
    return of_rows(product(as_rows(grad), weight.T, GATE, scores.T), grad)


@op
def gated_linear_weight_grad(grad: Tensor, input: Tensor, weight: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and scores, in one pass over grad and input."""
    name = "gated_linear_weight_grad"
    check_floating(name, grad=grad, input=input, weight=weight, scores=scores)
    check_same_rows(name, grad, input)
    check_shape(name, "weight", weight, (grad.shape[-1], input.shape[-1]))
    check_shape(name, "scores", scores, weight.shape)
    return outer_product(as_rows(grad), as_rows(input), GATE, scores, weight)
