"""How far a sum of products may be from the exact one: one bound for the tests and for the kernels' self-test."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_bound(
    want: Tensor, magnitude: Tensor, dtype: torch.dtype, terms: int, products_rounded: bool = False
) -> Tensor:
    """The largest error that each of the exact sums `want` of `terms` products may have when computed in `dtype`.

    Adding n products errs by at most unit * n * magnitude and, roundings being independent, in practice by sqrt(n) of
    it (Higham & Mary 2019). Half types are summed in float32 and rounded once.

    Args:
        want: the sums, float64.
        magnitude: the same sums over absolute values.
        dtype: of the operands and the result.
        terms: products in each sum.
        products_rounded: each product is first rounded to the half type, as plain PyTorch does for weight * mask.
    """
    unit = torch.finfo(dtype).eps
    sums = unit if dtype in (torch.float32, torch.float64) else torch.finfo(torch.float32).eps
    bound = unit * want.abs() + sums * (terms + 1) ** 0.5 * magnitude + torch.finfo(dtype).smallest_normal
    return bound + unit * magnitude if products_rounded else bound
