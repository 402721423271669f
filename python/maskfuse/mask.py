"""`Mask`: which weights of a tensor are active, one bit each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import describe
from ._mask import patterns
from ._mask.bits import packed_bits, rows_columns, valid_bits
from ._mask.packed import PackedMask
from ._mask.plans import block_lists_of, plan_of
from .ops.mask import words


class Mask(PackedMask):
    """An immutable binary mask over a weight of shape `[out, in, ...]`, one bit a weight.

    The bits of output `o` are row `o` of `bits`, an int32 tensor `[out, ceil(in * ... / 32)]`: least
    significant bit first, zero past the last column. A one-dimensional mask is a single row.

    Make one with `from_dense`, `threshold`, `topk`, `random`, `n_m`, `blocks`, `channels`, `full` or
    `from_bits`; combine with `&`, `|`, `~`; compare with `==`. A mask pickles, deep-copies (to itself), and
    goes into safetensors as `mask.bits`.

    Args:
        bits: int32 `[out, ceil(in * ... / 32)]`, as above, not copied and not looked at; `from_bits` checks them.
        shape: of the weight.
        plan: what kernels derive from the bits; None to make it when it is first asked for.
    """

    __slots__ = ()

    # -- making one ------------------------------------------------------------------------------------

    @staticmethod
    def from_dense(t: Tensor) -> Mask:
        """Mask of the weights at which `t` is true.

        Args:
            t: bool, of any shape with at least one dimension, on CPU or CUDA.

        Returns:
            A mask of `t`'s shape, on its device.

        Raises:
            TypeError: `t` is not a bool tensor.
            ValueError: `t` is a scalar.
        """
        if not isinstance(t, Tensor) or t.dtype != torch.bool:
            raise TypeError(
                f"t must be a bool tensor, got {describe(t)}; "
                "use t.bool() for 0/1 integers, Mask.threshold(t, value) for weights"
            )
        rows, columns = rows_columns(t.shape, "t")
        return Mask(packed_bits(t.reshape(rows, columns)), t.shape)

    @staticmethod
    def from_bits(bits: Tensor, shape: Sequence[int]) -> Mask:
        """Mask of packed bits, as `Mask.bits` has them.

        Args:
            bits: int32 `[out, ceil(in * ... / 32)]`, zero past the last column; copied.
            shape: of the weight, `[out, in, ...]`.

        Returns:
            A mask of that shape, on the bits' device.

        Raises:
            TypeError: `bits` is not an int32 tensor, or `shape` no sequence.
            ValueError: `bits` has another shape than `shape` needs, bits set past the last column, or no values of its
                own: it is sparse or on meta.
        """
        rows, columns = rows_columns(shape, "shape")
        if not isinstance(bits, Tensor) or bits.dtype != torch.int32:
            raise TypeError(f"bits must be an int32 tensor, got {describe(bits)}")
        if bits.layout is not torch.strided or bits.is_nested or bits.is_meta:
            raise ValueError(f"bits must be a plain tensor with values, got one of {bits.layout} on {bits.device}")
        if tuple(bits.shape) != (rows, words(columns)):
            raise ValueError(
                f"bits must have shape {[rows, words(columns)]} for a mask of shape {list(shape)}, "
                f"got {list(bits.shape)}"
            )
        bits = bits.detach().clone(memory_format=torch.contiguous_format)
        if bool((bits & ~valid_bits(columns, bits.device)).any()):
            raise ValueError(f"bits has bits set past the last column of a mask of shape {list(shape)}")
        return Mask(bits, shape)

    @staticmethod
    def full(shape: Sequence[int], active: bool = True, device: torch.device | str | None = None) -> Mask:
        """Mask with every weight active, or none.

        Args:
            shape: of the weight, `[out, in, ...]`.
            active: which of the two.
            device: of the bits; None for the CPU.

        Returns:
            A mask of that shape.

        Raises:
            TypeError: `shape` is no sequence.
            ValueError: `shape` has no dimension, or a negative size.
        """
        rows, columns = rows_columns(shape, "shape")
        row = valid_bits(columns, device or "cpu")
        return Mask((row if active else torch.zeros_like(row)).repeat(rows, 1), shape)

    @staticmethod
    def threshold(t: Tensor, value: float) -> Mask:
        """Active where `|t| > value`: magnitude pruning at a fixed threshold (Han et al. 2015, arXiv:1506.02626).

        Args:
            t: weights of any shape, of any real dtype; NaN is masked.
            value: in the unit of `t`.

        Returns:
            A mask of `t`'s shape, on its device.

        Raises:
            TypeError: `t` is not a tensor of real numbers.
            ValueError: `t` is a scalar.
        """
        return Mask.from_dense(patterns.above(t, value))

    @staticmethod
    def topk(scores: Tensor, density: float) -> Mask:
        """Active at the `round(density * numel)` largest scores; equal scores go to the lower index.

        Args:
            scores: of any shape, of any real dtype, taken as they are: pass `weight.abs()` for magnitude pruning.
            density: active share, 0..1.

        Returns:
            A mask of the scores' shape, on their device.

        Raises:
            TypeError: `scores` is not a tensor of real numbers.
            ValueError: `density` is outside 0..1, a score is NaN, or `scores` is a scalar.
        """
        return Mask.from_dense(patterns.topk(scores, density))

    @staticmethod
    def random(shape: Sequence[int], density: float, generator: torch.Generator | None = None) -> Mask:
        """Active at `round(density * numel)` positions drawn uniformly.

        Args:
            shape: of the weight, `[out, in, ...]`.
            density: active share, 0..1.
            generator: draws the positions, on its device; None for torch's own on the CPU.

        Returns:
            A mask of that shape, on the generator's device.

        Raises:
            TypeError: `shape` is no sequence.
            ValueError: `density` is outside 0..1, or `shape` has no dimension or a negative size.
        """
        return Mask.from_dense(patterns.random(shape, density, generator))

    @staticmethod
    def n_m(scores: Tensor, n: int, m: int) -> Mask:
        """Active at the `n` largest of every `m` consecutive scores along the input dimension (dim 1).

        2:4 is the pattern of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378). Equal scores go to
        the lower index.

        Args:
            scores: `[out, in, ...]`, of any real dtype, taken as they are.
            n: active weights of each group, `0 <= n <= m`.
            m: weights a group; divides `in`.

        Returns:
            A mask of the scores' shape, on their device.

        Raises:
            TypeError: `scores` is not a tensor of real numbers.
            ValueError: not 0 <= n <= m, fewer than two dimensions, `in` is no multiple of m, or a score is NaN.
        """
        return Mask.from_dense(patterns.n_m(scores, n, m))

    @staticmethod
    def blocks(active: Tensor, block: tuple[int, int], shape: Sequence[int] | None = None) -> Mask:
        """Active in whole blocks of weights.

        Args:
            active: bool `[ceil(out / rows), ceil(in / columns)]`: which blocks are active.
            block: `(rows, columns)` of a block, in weights.
            shape: of the weight, `[out, in, ...]`, at whose edge blocks are cut; `in` then counts the flattened
                trailing dimensions. None: of two dimensions, so that no block is cut.

        Returns:
            A mask of that shape, on the device of `active`.

        Raises:
            TypeError: `active` is no bool tensor of two dimensions, or `block` no pair.
            ValueError: `active` has another shape than `shape` needs, or a size of `block` is not positive.
        """
        return Mask.from_dense(patterns.blocks(active, block, shape))

    @staticmethod
    def channels(shape: Sequence[int], out: Tensor | None = None, inp: Tensor | None = None) -> Mask:
        """Active where both the output channel (dim 0) and the input channel (dim 1) are.

        Args:
            shape: of the weight, `[out, in, ...]`.
            out: bool `[out]`, or integers `[K]`, the indices of the active output channels; None keeps all.
            inp: bool `[in]`, or integers `[K]`, the same of the input channels.

        Returns:
            A mask of that shape, on the device of `out` and `inp`.

        Raises:
            TypeError: neither bool nor integer, or `shape` is no sequence.
            ValueError: another length, two devices, or a shape without an input dimension.
            IndexError: an index out of range.
        """
        return Mask.from_dense(patterns.channels(shape, out, inp))

    # -- what kernels read -----------------------------------------------------------------------------

    @property
    def plan(self) -> list[Tensor]:
        """What kernels derive from the bits, as ops take it: on the CPU the index of the mask of a linear layer
        or a convolution, and of its transpose, in which a convolution's taps stay together
        (`csrc/cpu/masked_linear_plan.h`), about two bytes an active weight. On CUDA the lists of blocks that hold
        active weights (`csrc/cuda/mask_lists.h`), a few bytes for each 128 x 64 weights, and for a convolution the bits
        in the order in which its kernels read them; of a size that depends on the shape alone, but for lists that would
        leave out less than three tenths of the blocks, which are empty.

        Made in parallel when it is first asked for, which layers do in `set_mask`, and once for all threads and all
        layers that share the mask. Empty for a mask that needs none (every weight active), of fewer than 4096 weights,
        of other than two or four dimensions or on another device, and in traced code that meets the mask before its
        plan is made.
        """
        plan = self._plan  # here, so that a call of a small layer pays for no other call
        return plan_of(self) if plan is None else plan

    @property
    def block_lists(self) -> list[Tensor]:
        """The plan that kernels on a GPU take; of a mask on the CPU, for Triton's interpreter, made by its ops."""
        return block_lists_of(self)

    # -- combining -------------------------------------------------------------------------------------

    def _combine(self, other: object, name: str, operation: Callable[[Tensor, Tensor], Tensor]) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        if other.shape != self.shape:
            raise ValueError(
                f"masks combined with {name} must have one shape, got {list(self.shape)} and {list(other.shape)}"
            )
        if other.device != self.device:
            raise ValueError(f"masks combined with {name} must be on one device, got {self.device} and {other.device}")
        return Mask(operation(self.bits, other.bits), self.shape)

    def __and__(self, other: object) -> Mask:
        """Active where both are."""
        return self._combine(other, "&", torch.bitwise_and)

    def __or__(self, other: object) -> Mask:
        """Active where either is."""
        return self._combine(other, "|", torch.bitwise_or)

    def __invert__(self) -> Mask:
        """Active where this one is not."""
        _, columns = rows_columns(self.shape, "shape")
        return Mask(self.bits ^ valid_bits(columns, self.device), self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles bits and shape; what is derived from them is found again."""
        return _rebuild, (self.bits, tuple(self.shape))


def _rebuild(bits: Tensor, shape: Sequence[int]) -> Mask:
    """What a pickle calls; its bits are checked like anybody's, and have to be there, not one for a whole mask."""
    if isinstance(bits, Tensor) and bits.layout is torch.strided and not bits.is_nested and not bits.is_meta:
        needed, found = bits.numel() * bits.element_size(), bits.untyped_storage().nbytes()
        if needed > found:
            raise ValueError(f"bits of shape {list(bits.shape)} take {needed} bytes, and the pickle has {found}")
    return Mask.from_bits(bits, shape)


torch.serialization.add_safe_globals([_rebuild])

__all__ = ["Mask"]
