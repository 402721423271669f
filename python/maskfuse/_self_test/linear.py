"""Checks of the linear layers: every pass, dtype and kind of plan, of one tile and more, partial ones among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .compare import (
    DTYPES,
    HALF,
    LEFT_PERIOD,
    RIGHT_PERIOD,
    Operands,
    Sums,
    close,
    close_periodic,
    dtypes,
    equal,
    has_kernel,
    library_used,
    packed,
    plans,
    repeating,
    side_of_large,
    sides_of_hopper,
    zero,
)

# Rows, columns and depth of each product: one row and few; a depth that is cut in parts, with rows that start at no
# multiple of 16 bytes; more rows than a tile of 128 has. Nothing is a whole number of tiles.
_SIZES = ((1, 70, 130), (3, 37, 72), (70, 37, 530), (130, 70, 72))
_REAL_SIZES = _SIZES[1:]


def _variants(ops: Any, weight: Tensor, bits: Tensor, columns: int) -> list[list[Tensor]]:
    """The plans that a product of the weight takes: none, the mask's, and that with the weight's packed values."""
    found = plans(ops, bits, columns, 0)
    if len(found) > 1 and has_kernel(ops, "masked_linear_pack", bits.device):
        values = ops.masked_linear_pack(weight, bits, found[1])
        if values:
            found.append([*found[1], *values])
    return found


def _mask(o: Operands, rows: int, columns: int, depth: int) -> Tensor:
    """A mask with an empty block of 64 along `depth`, the dimension that is summed over, where that has three."""
    dense = o.flags(rows, columns)
    if dense.shape[depth] > 128:
        dense.narrow(depth, 64, 64).fill_(False)
    return dense


def _sums(left: Tensor, right: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Sums:
    """left `[m, k]` @ right `[n, k]`.T with a binary or real-valued mask on `right`, and a bias."""
    mask = torch.ones(right.shape, dtype=torch.bool, device="cpu") if mask is None else mask
    x, w, b = left.double(), right.double(), None if bias is None else bias.double()
    binary = mask.dtype == torch.bool
    return Sums(
        reference.masked_linear(x, w, mask if binary else mask.double(), b),
        reference.masked_linear(
            x.abs(), w.abs(), mask if binary else mask.double().abs(), None if b is None else b.abs()
        ),
    )


def masked_linear(ops: Any, device: torch.device) -> None:
    """Binary masks. Masked weights are NaN, which must not be read into any sum."""
    o = Operands(device)
    for dtype in dtypes(ops):
        for m, n, k in _SIZES:
            x, w, b, dense = (
                o.normal(m, k, dtype=dtype),
                o.normal(n, k, dtype=dtype),
                o.normal(n, dtype=dtype),
                _mask(o, n, k, 1),
            )
            want = _sums(x, w, dense, b)
            xd, wd, bd, bits = o.there(x, w.masked_fill(~dense, torch.nan), b, packed(dense))
            for plan in _variants(ops, wd, bits, k):
                o.poison(m, n, dtype=dtype)
                close("forward", ops.masked_linear(xd, wd, bits, plan, bd), want, dtype, k + 1)

            dy, w, dense = o.normal(m, k, dtype=dtype), o.normal(k, n, dtype=dtype), _mask(o, k, n, 0)
            want = _sums(dy, w.T, dense.T)
            dyd, wd, bits = o.there(dy, w.masked_fill(~dense, torch.nan), packed(dense))
            for plan in _variants(ops, wd, bits, n):
                o.poison(m, n, dtype=dtype)
                close("input_grad", ops.masked_linear_input_grad(dyd, wd, bits, plan), want, dtype, k)

            dy, x, dense = o.normal(k, m, dtype=dtype), o.normal(k, n, dtype=dtype), o.flags(m, n)
            want = _sums(dy.T, x.T).times(dense)
            dyd, xd, bits = o.there(dy, x, packed(dense))
            for plan in plans(ops, bits, n, 0):
                o.poison(m, n, dtype=dtype)
                got = ops.masked_linear_weight_grad(dyd, xd, bits, plan)
                close("weight_grad", got, want, dtype, k)
                zero("weight_grad", got, ~dense)
        if dtype in HALF and has_kernel(ops, "mask_lists", device):
            _large(ops, o, dtype, side_of_large(o.device), 72)
            for side in sides_of_hopper(ops, o.device):
                _large(ops, o, dtype, side, 456)  # more blocks of 64 than a ring has stages


def _large(ops: Any, o: Operands, dtype: torch.dtype, side: int, depth: int) -> None:
    """Tiles of 128 x 128 and more on tensor cores, which are taken where every multiprocessor gets one."""
    rows, columns = LEFT_PERIOD, RIGHT_PERIOD
    down, across = repeating(rows, side, o.device), repeating(columns, side, o.device)

    x, w, dense = o.normal(rows, depth, dtype=dtype), o.normal(columns, depth, dtype=dtype), o.flags(columns, depth)
    xd, wd, bits = o.there(x, w.masked_fill(~dense, torch.nan), packed(dense))
    for plan in plans(ops, bits[across], depth, 0):
        got = ops.masked_linear(xd[down], wd[across], bits[across], plan, None)
        close_periodic("forward of large tiles", got, _sums(x, w, dense), dtype, depth)

    dy, w, dense = o.normal(rows, depth, dtype=dtype), o.normal(depth, columns, dtype=dtype), o.flags(depth, columns)
    dyd, wd, flags = o.there(dy, w.masked_fill(~dense, torch.nan), dense)
    bits = packed(flags[:, across])
    for plan in plans(ops, bits, side, 0):
        got = ops.masked_linear_input_grad(dyd[down], wd[:, across], bits, plan)
        close_periodic("input_grad of large tiles", got, _sums(dy, w.T, dense.T), dtype, depth)

    dy, x, dense = o.normal(depth, rows, dtype=dtype), o.normal(depth, columns, dtype=dtype), o.flags(rows, columns)
    dyd, xd, flags = o.there(dy, x, dense)
    bits, want = packed(flags[down][:, across]), _sums(dy.T, x.T).times(dense)
    for plan in plans(ops, bits, side, 0):
        got = ops.masked_linear_weight_grad(dyd[:, down], xd[:, across], bits, plan)
        close_periodic("weight_grad of large tiles", got, want, dtype, depth)


def soft_masked_linear(ops: Any, device: torch.device) -> None:
    """Real-valued masks."""
    o = Operands(device)
    for dtype in dtypes(ops):
        for m, n, k in _REAL_SIZES:
            x, w, mask, b = (o.normal(*shape, dtype=dtype) for shape in ((m, k), (n, k), (n, k), (n,)))
            xd, wd, md, bd = o.there(x, w, mask, b)
            o.poison(m, n, dtype=dtype)
            got = ops.soft_masked_linear(xd, wd, md, bd)
            close("forward", got, _sums(x, w, mask, b), dtype, k + 1, rounded=True)

            dy, w, mask = (o.normal(*shape, dtype=dtype) for shape in ((m, k), (k, n), (k, n)))
            o.poison(m, n, dtype=dtype)
            got = ops.soft_masked_linear_input_grad(*o.there(dy, w, mask))
            close("input_grad", got, _sums(dy, w.T, mask.T), dtype, k, rounded=True)

            dy, x, factor = (o.normal(*shape, dtype=dtype) for shape in ((k, m), (k, n), (m, n)))
            o.poison(m, n, dtype=dtype)
            got = ops.soft_masked_linear_weight_grad(*o.there(dy, x, factor))
            close("weight_grad", got, _sums(dy.T, x.T).times(factor), dtype, k, rounded=True)


def gated_linear(ops: Any, device: torch.device) -> None:
    """Gates: masks of sigmoid(scores)."""
    o = Operands(device)
    for dtype in dtypes(ops):
        for m, n, k in _REAL_SIZES:
            x, w, scores, b = (o.normal(*shape, dtype=dtype) for shape in ((m, k), (n, k), (n, k), (n,)))
            xd, wd, sd, bd = o.there(x, w, scores, b)
            o.poison(m, n, dtype=dtype)
            want = Sums(
                reference.gated_linear(x.double(), w.double(), scores.double(), b.double()),
                _sums(x, w, torch.sigmoid(scores.double()), b).magnitude,
            )
            close("forward", ops.gated_linear(xd, wd, sd, bd), want, dtype, k + 1, rounded=True)

            dy, w, scores = (o.normal(*shape, dtype=dtype) for shape in ((m, k), (k, n), (k, n)))
            o.poison(m, n, dtype=dtype)
            got = ops.gated_linear_input_grad(*o.there(dy, w, scores))
            close("input_grad", got, _sums(dy, w.T, torch.sigmoid(scores.double()).T), dtype, k, rounded=True)

            dy, x, w, scores = (o.normal(*shape, dtype=dtype) for shape in ((k, m), (k, n), (m, n), (m, n)))
            o.poison(2, m, n, dtype=dtype)
            d_weight, d_scores = ops.gated_linear_weight_grad(*o.there(dy, x, w, scores))
            sums = _sums(dy.T, x.T)
            gate = torch.sigmoid(scores.double())
            slope = w.double() * gate * torch.sigmoid(-scores.double())  # 1 - gate would cancel
            close("weight_grad", d_weight, sums.times(gate), dtype, k, rounded=True)
            close("scores_grad", d_scores, sums.times(slope), dtype, k, rounded=True)


def _exactly(what: str, got: Tensor, want: Tensor) -> None:
    """Equal to what the exact result is rounded to; zeros of either sign."""
    equal(what, got.cpu() + 0, want.to(got.dtype) + 0)


def masked_copy(ops: Any, device: torch.device) -> None:
    """The passes around a product by torch's library, of whole numbers, whose sums are exact in every mode that the
    library has. Rows of whole pieces of 16 bytes, and not."""
    o = Operands(device)
    with library_used(ops, device, "always"):
        for dtype in DTYPES:
            for m, n, k in ((9, 37, 72), (5, 72, 61)):
                x, dy, w = (o.whole(*shape, dtype=dtype) for shape in ((m, k), (m, n), (n, k)))
                dense, factor = o.flags(n, k), 2 - 3 * o.flags(n, k).to(dtype)  # by 2 and by -1: exact, too
                a, g, b = x.double(), dy.double(), w.double()
                xd, dyd, wd, fd, bits = o.there(x, dy, w, factor, packed(dense))
                holes = wd.masked_fill(~dense.to(device), torch.nan)
                under, times = b * dense, b * factor.double()
                _exactly("forward", ops.masked_linear(xd, holes, bits, [], None), a @ under.T)
                _exactly("forward", ops.soft_masked_linear(xd, wd, fd, None), a @ times.T)
                _exactly("input_grad", ops.masked_linear_input_grad(dyd, holes, bits, []), g @ under)
                _exactly("input_grad", ops.soft_masked_linear_input_grad(dyd, wd, fd), g @ times)
                got = ops.masked_linear_weight_grad(dyd, xd, bits, [])
                _exactly("weight_grad", got, (g.T @ a) * dense)
                zero("weight_grad", got, ~dense)
                product = (g.T @ a).to(dtype).double()  # as the library rounds it
                _exactly("weight_grad", ops.soft_masked_linear_weight_grad(dyd, xd, fd), product * factor.double())
                scores = o.normal(n, k, dtype=dtype)
                gate, slope = torch.sigmoid(scores.double()), torch.sigmoid(-scores.double())
                d_weight, d_scores = ops.gated_linear_weight_grad(dyd, xd, wd, scores.to(device))
                for want, got in ((product * gate, d_weight), (product * b * gate * slope, d_scores)):
                    close("gradient of a gate", got, Sums(want, want.abs()), dtype, 4)
