"""`mask_gradient`: an identity whose derivative is a mask.

Not an op of the dispatcher: torch's own ops are all that it takes, and compilers see through them. Its two Functions
stand for one derivative, as in `autograd.multilinear`, which cannot serve here: what this gives is linear in its input,
but its derivative is not the function itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._traced import func_is_tracing, outside_of_graphs
from .autograd import is_recorded, is_transformed, one_forward_level

if TYPE_CHECKING:
    from ..mask import Mask


def masked(t: Tensor, mask: Mask | Tensor) -> Tensor:
    """`where(mask, t, 0)` for a binary mask, whatever `t` holds under it; `t * mask` for a floating one, a constant.

    Of a sparse COO tensor the entries that it has, coalesced.
    """
    dense = mask if isinstance(mask, Tensor) else mask.to(t.device).dense()
    if not torch.compiler.is_compiling() and t.layout is torch.sparse_coo:  # compilers trace no sparse tensors
        t = t.coalesce()
        values = masked(t.values(), dense[tuple(t.indices())])
        return torch.sparse_coo_tensor(t.indices(), values, t.shape, is_coalesced=True)
    return t * dense.detach() if dense.is_floating_point() else torch.where(dense, t, 0)


class _Recorded(torch.autograd.Function):
    """For eager and compiled code: the output is the input's own memory, and a `Mask` is kept as bits."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Mask | Tensor) -> Tensor:
        ctx.mask = None if isinstance(mask, Tensor) else mask
        if isinstance(mask, Tensor):
            ctx.save_for_backward(mask)
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0] if ctx.mask is None else ctx.mask), None


class _Transformed(torch.autograd.Function):
    """For `torch.func` and forward mode, in which the tangent of a view would have to be a view of the tangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, mask: Tensor) -> Tensor:
        return input.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0]), None

    @staticmethod
    @one_forward_level
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return masked(tangent, ctx.saved_tensors[0])


def _apply_transformed(input: Tensor, mask: Tensor) -> Tensor:
    return _Transformed.apply(input, mask)


# As in `autograd.multilinear`: traced through, the Function would lose its derivative under a transform.
_func_traces = func_is_tracing(_apply_transformed)
_transformed_outside = outside_of_graphs(_apply_transformed)


def mask_gradient(input: Tensor, mask: Mask | Tensor) -> Tensor:
    """`input`, differentiated as if multiplied by the mask, which is a `Mask`, bool or of the input's dtype."""
    if torch.compiler.is_compiling():
        dense = mask if isinstance(mask, Tensor) else mask.dense()
        if _func_traces():
            return _apply_transformed(input, dense)
        return _Recorded.apply(input, dense) if forward_ad._current_level < 0 else _transformed_outside(input, dense)
    if is_transformed((input, mask)):
        return _Transformed.apply(input, mask if isinstance(mask, Tensor) else mask.to(input.device).dense())
    return _Recorded.apply(input, mask) if is_recorded((input,)) else input.detach()
