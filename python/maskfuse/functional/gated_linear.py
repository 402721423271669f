"""`gated_linear`: a linear layer whose weight is scaled by a learned gate."""

from __future__ import annotations

from torch import Tensor

from .. import ops, reference
from ..backends import choose, extend
from . import _backends, _check

extend("cpu", {"gated_linear": ops.gated_linear})
extend("cuda", {"gated_linear": ops.gated_linear})
extend("triton", {"gated_linear": lambda *operands: _backends.triton.gated_linear(*operands)})
extend("reference", {"gated_linear": reference.gated_linear})


def gated_linear(input: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear layer with a gated weight: `input @ (weight * sigmoid(scores)).T + bias` (Savarese et al. 2020,
    "Winning the Lottery with Continuous Sparsification", with temperature 1).

    Neither gate nor gated weight is stored: the sigmoid is taken while the kernel reads the weight, and backward writes
    the gradients of weight and scores in one pass. Under `torch.compile`, `torch.func` and autocast, and where a
    gradient is differentiated again, the gate is a tensor of the weight's size. Sums are float32 for the half types,
    else the type's own; the gate is taken in the same precision.

    Args:
        input: `[..., in]`, any strides, float32, float64, bfloat16 or float16.
        weight: `[out, in]`, the input's dtype and device.
        scores: `[out, in]`, the weight's dtype and device.
        bias: `[out]`, the input's dtype and device, or None.

    Returns:
        `[..., out]`, contiguous, the input's dtype.

    Raises:
        TypeError: a dtype that is not named above, or dtypes that differ.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the backend asked for cannot run on the input's device.
    """
    _check.floating(input, "input")
    _check.floating(weight, "weight")
    _check.floating(scores, "scores")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape [out, in], got {list(weight.shape)}")
    if scores.shape != weight.shape:
        raise ValueError(f"scores must have the shape of weight, {list(weight.shape)}, got {list(scores.shape)}")
    _check.same("scores", scores, "weight", weight)
    input, weight, scores, bias = _check.autocast(input, weight, scores, bias)
    _check.linear_operands(input, weight, bias)
    return choose("gated_linear", input.device).ops["gated_linear"](input, weight, scores, bias)
