"""Products of a mask of whole channels: torch's own, on the active rows and columns alone."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_ROWS = 256  # of the input, below which what is gathered and put back costs more than the product saves


def _cast_off(t: Tensor) -> torch.autocast:
    """An op's result has its operands' dtype, whatever torch's own products are cast to where it is called."""
    return torch.autocast(t.device.type, enabled=False)


def _put(values: Tensor, columns: Tensor, count: int, rest: Tensor | None = None) -> Tensor:
    """values `[m, K]` in these columns of `[m, count]`; `rest` `[count]`, or zeros, is what the others hold."""
    base = values.new_zeros((values.shape[0], count)) if rest is None else rest.repeat(values.shape[0], 1)
    return base.index_copy(1, columns, values)


def product_alone(x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """x `[m, in]` times the weight `[out, in]`, transposed, of which these rows and columns are active: `[m, out]`."""
    rows, columns = rows.long(), columns.long()
    with _cast_off(x):
        right = weight.index_select(0, rows).index_select(1, columns).T
        left = x.index_select(1, columns)
        if bias is None:
            return _put(left @ right, rows, weight.shape[0])
        return _put(torch.addmm(bias.index_select(0, rows), left, right), rows, weight.shape[0], bias)


def weight_grad_alone(g: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """g `[m, out]`, transposed, times x `[m, in]`, in these rows and columns, else 0: `[out, in]`."""
    rows, columns = rows.long(), columns.long()
    with _cast_off(x):
        values = g.index_select(1, rows).T @ x.index_select(1, columns)
        return values.new_zeros((g.shape[1], x.shape[1])).index_copy(0, rows, _put(values, columns, x.shape[1]))
