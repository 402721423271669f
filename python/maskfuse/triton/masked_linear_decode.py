"""Packed weights: `masked_linear_pack`, and calls of few rows, which read nothing else of the weight."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._device import capability, multiprocessors
from ._launch import launch, plain_op, wrap_triton
from ._linear import add_parts, sums_of
from ._operands import check_bits, far
from ._plan import Packed
from ._planner import cut_product
from .kernels.masked_linear_decode import decode_few
from .kernels.product import LIST_BLOCK


@plain_op
def masked_linear_pack(weight: Tensor, bits: Tensor, plan: list[Tensor]) -> list[Tensor]:
    """The tensors of `Packed`. Waits for the device, which counts the active weights."""
    name = "masked_linear_pack"
    if weight.dim() != 2:
        raise RuntimeError(f"{name}: weight must have shape [out, in], got {list(weight.shape)}")
    out, inp = weight.shape
    bits = check_bits(name, bits, out, inp, weight)
    dense = torch.ops.maskfuse_triton.mask_unpack(bits, inp)
    blocks = (inp + LIST_BLOCK - 1) // LIST_BLOCK
    padded = torch.nn.functional.pad(dense, (0, blocks * LIST_BLOCK - inp))
    counts = padded.reshape(out, blocks, LIST_BLOCK).sum(2)
    of_row = counts.sum(1)
    block_starts = counts.cumsum(1) - counts
    # Triton 3.7 compiles no product in float64 of an operand that was found by way of a 16-bit number.
    narrow = torch.int16 if inp <= 1 << 16 and weight.dtype != torch.float64 else torch.int32
    return list(
        Packed(
            weight[dense],
            of_row.cumsum(0) - of_row,
            block_starts.to(narrow),  # wraps: without a sign it is what it was
            weight.new_empty((0, out, inp)),
        )
    )


def decode(x: Tensor, bits: Tensor, packed: Packed, n: int, bias: Tensor | None) -> Tensor:
    """x `[m, k]` of at most 16 rows times a packed weight, transposed: `[m, n]`."""
    m, k = x.shape
    y = x.new_empty((m, n))
    if m == 0 or n == 0:
        return y
    parts = cut_product(m, n, k, x.dtype, multiprocessors(x.device)).parts
    to = y if parts == 1 else x.new_empty((parts, m, n), dtype=sums_of(x.dtype))
    bias = None if bias is None else bias.contiguous()
    fused = bias if parts == 1 else None
    launch(
        wrap_triton(decode_few),
        lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), parts),
        x,
        bits,
        packed.values,
        packed.row_starts,
        packed.block_starts,
        to if fused is None else fused,
        to,
        m,
        n,
        k,
        packed.values.numel(),
        *x.stride(),
        bits.stride(0),
        packed.block_starts.shape[1],
        BIAS=fused is not None,
        PARTS=parts,
        FAR=packed.values.numel() >= 1 << 31 or far(x, to),
        ARCH=capability(x.device),
    )
    return y if parts == 1 else add_parts(to, bias, y)
