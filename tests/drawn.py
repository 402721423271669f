"""What property tests draw: masks of every structure, tensors of any strides; and how results are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from conftest import assert_sums_close
from hypothesis import given, settings
from hypothesis import strategies as st
from maskfuse import Mask
from torch import Tensor

# Columns of a row of bits: none or some words in full, and one that is not.
COLUMNS = [0, 1, 2, 31, 32, 33, 63, 65, 96, 130]
UNREAD = [float("nan"), float("inf"), -float("inf")]


def check_examples(check: Callable[..., None], backend: str = "", **fixed: Any) -> None:
    """Calls `check(draw, **fixed)` for as many examples as the profile says, for a few in Triton's interpreter."""

    @settings(max_examples=3 if backend == "triton" else settings.default.max_examples)
    @given(data=st.data())
    def examples(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(st.integers(0, 999), "seed"))
        check(data.draw, **fixed)

    examples()


def size(draw: Any, least: int, most: int, *edges: int) -> int:
    """A size in a range, often one of the edges."""
    return draw(st.one_of(st.sampled_from(edges), st.integers(least, most)) if edges else st.integers(least, most))


STRUCTURES = ["random", "empty", "full", "channels", "blocks", "n:m", "one a row", "one in all", "uneven"]


def drawn_mask(draw: Any, shape: Sequence[int], structures: Sequence[str] = STRUCTURES) -> Mask:
    """A mask of one of the structures, as far as the shape has room for it."""
    kind = draw(st.sampled_from(structures))
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    if kind in ("empty", "full") or 0 in shape:
        return Mask.full(shape, active=kind != "empty")
    if kind == "channels":
        return Mask.channels(shape, torch.rand(shape[0]) < 0.5, torch.rand(shape[1]) < 0.5)
    if kind == "blocks":
        block = draw(st.sampled_from([(1, 4), (4, 1), (2, 8), (16, 16)]))
        return Mask.blocks(torch.rand(-(-rows // block[0]), -(-columns // block[1])) < 0.5, block, shape)
    if kind == "n:m" and shape[1] % 4 == 0:
        return Mask.n_m(torch.rand(*shape), draw(st.integers(1, 3)), 4)
    dense = torch.rand(rows, columns) < draw(st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.9, 0.99]))
    if kind == "one a row":
        dense = torch.nn.functional.one_hot(torch.randint(columns, (rows,)), columns).bool()
    if kind == "one in all":
        dense = torch.arange(rows * columns).reshape(rows, columns) == draw(st.integers(0, rows * columns - 1))
    if kind == "uneven":
        dense &= (torch.arange(rows) % 3 == 1)[:, None]
    return Mask.from_dense(dense.reshape(tuple(shape)))


LAYOUTS = ["contiguous", "offset", "transposed", "every other", "wide rows", "expanded", "channels_last"]


def laid_out(draw: Any, t: Tensor) -> Tensor:
    """The tensor in memory in one of the ways that torch has; expanded, its first dimension is one value for all."""
    layout = draw(st.sampled_from(LAYOUTS))
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if t.dim() == 0 or t.numel() == 0 or layout in ("contiguous", "channels_last"):
        return t
    if layout == "expanded":
        return t[:1].expand_as(t)
    if layout == "offset":
        base = torch.full((t.numel() + 3,), 7.0).to(t.dtype)
        return base[3:].view_as(t).copy_(t)
    if layout == "transposed":
        return t.mT.contiguous().mT if t.dim() > 1 else t
    step = 2 if layout == "every other" else 1
    wide = torch.full((*t.shape[:-1], step * t.shape[-1] + 5), 7.0).to(t.dtype)
    return wide[..., 2 : 2 + step * t.shape[-1] : step].copy_(t)


def spoiled(draw: Any, weight: Tensor, mask: Mask) -> Tensor:
    """The weight with NaN or infinity under the mask, or as it is."""
    if not draw(st.booleans()):
        return weight
    return weight.masked_fill(~mask.dense(), draw(st.sampled_from(UNREAD)))


def derivatives(call: Callable[..., Tensor], operands: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """The result, and the gradients of the operands, each where it lies. Without `grad`, the result alone."""
    leaves = [t.detach().requires_grad_(grad is not None) for t in operands]
    result = call(*leaves)
    return [result.detach(), *([] if grad is None else torch.autograd.grad(result, leaves, grad))]


def gradient_of_scores(
    exact: Callable[..., Tensor], operands: Sequence[Tensor], scores: int, grad: Tensor, weight: int = 1
) -> Tensor:
    """That of gates, weight * slope of the sigmoid * what the product gets, in numpy's widest numbers.

    In float64 torch would round its factors as often as what is compared with it.
    """
    opened = [torch.full_like(t, float("inf")) if i == scores else t for i, t in enumerate(operands)]  # gates of 1
    of_product = derivatives(exact, opened, grad)[1 + weight]
    product, factor, score = (t.numpy().astype(np.longdouble) for t in (of_product, operands[weight], operands[scores]))
    return torch.from_numpy((product * factor / ((1 + np.exp(score)) * (1 + np.exp(-score)))).astype(np.float64))


def check_sums(
    call: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    operands: Sequence[Tensor],
    grad: Callable[[Tensor], Tensor],
    terms: Sequence[int],
    scores: int | None = None,
    rounded: bool = False,
) -> list[Tensor]:
    """Compares the result and the gradients of all operands with exact ones, and with a second call, bit for bit.

    Args:
        call, exact: what is tested, and its definition.
        operands: in the dtype that is tested.
        grad: of the result's gradient, from the result.
        terms: products in each sum, of the result and of each gradient.
        scores: the operand whose sigmoids are a mask: 1 - sigmoid, a factor of its gradient, is not exact.
        rounded: products are rounded to a half type.
    """
    dy = grad(call(*operands))
    # Of equal terms the roundings are equal too: errors grow with their number, not with its root.
    equal = any(t.dim() and t.shape[0] > 1 and t.stride(0) == 0 for t in (*operands, dy))
    terms = [count * count if equal else count for count in terms]
    got, again = derivatives(call, operands, dy), derivatives(call, operands, dy)
    wide = [t.double().cpu() for t in operands]
    sizes = [t if i == scores else t.abs() for i, t in enumerate(wide)]
    dy = dy.double().cpu()
    want, magnitude = derivatives(exact, wide, dy), derivatives(exact, sizes, dy.abs())
    if scores is not None:
        want[1 + scores] = gradient_of_scores(exact, wide, scores, dy)
        magnitude[1 + scores] /= 1 - wide[scores].sigmoid()
    for ours, once_more, theirs, most, count in zip(got, again, want, magnitude, terms, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == operands[0].dtype
        assert torch.equal(ours, once_more), "another result in a second call"
        assert_sums_close(ours.cpu(), theirs, most.abs(), ours.dtype, count, rounded)
    return got


def check_masked_gradient(gradient: Tensor, mask: Mask) -> None:
    """Exactly +0.0 under the mask."""
    masked = gradient[~mask.dense()]
    assert not masked.any() and not masked.signbit().any()
