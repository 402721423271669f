"""The immutable bits of a mask, and what is found in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .bits import rows_columns, unpacked_bits

AnyMask = TypeVar("AnyMask", bound="PackedMask")

_KINDS = ("empty", "full", "channels", "blocks", "n:m", "unstructured")


class PackedMask:
    """Bits and shape, which never change, and facts, which are found when they are first asked for."""

    __slots__ = ("_block_lists", "_facts", "_plan", "bits", "known_full", "shape")

    bits: Tensor
    shape: torch.Size
    known_full: bool  # the plan was asked for, for which the bits were looked at, and every weight is active
    _plan: list[Tensor] | None
    _block_lists: list[Tensor] | None
    _facts: tuple[int, ...] | None

    def __init__(self, bits: Tensor, shape: Sequence[int], plan: list[Tensor] | None = None) -> None:
        if not torch.compiler.is_compiling() and bits.is_inference():  # autograd could not save them
            with torch.inference_mode(False):
                bits = bits.clone()
        set_once = super().__setattr__
        set_once("bits", bits)
        set_once("shape", torch.Size(shape))
        set_once("known_full", False)
        set_once("_plan", plan)
        set_once("_facts", None)
        set_once("_block_lists", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Mask is immutable: cannot set {name!r}; make a new mask")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Mask is immutable: cannot delete {name!r}")

    def __copy__(self: AnyMask) -> AnyMask:
        """Itself: it cannot change."""
        return self

    def __deepcopy__(self: AnyMask, memo: dict[int, Any]) -> AnyMask:
        """Itself: it cannot change, so copies of a layer share it."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def to(self: AnyMask, device: torch.device | str) -> AnyMask:
        """The mask on `device`; itself where it is there already.

        Args:
            device: CPU or CUDA.

        Raises:
            RuntimeError, AssertionError: torch has no such device, or was built without it.
        """
        device = torch.device(device)
        bits = self.bits.to(device)
        if bits is self.bits:
            return self
        moved = type(self)(bits, self.shape)
        object.__setattr__(moved, "_facts", self._facts)
        object.__setattr__(moved, "known_full", self.known_full)
        return moved

    def dense(self) -> Tensor:
        """The mask as a bool tensor of its shape, on its device."""
        _, columns = rows_columns(self.shape, "shape")
        return unpacked_bits(self.bits, columns).reshape(self.shape)

    @property
    def numel(self) -> int:
        """Number of weights, active or not."""
        return math.prod(self.shape)

    @property
    def active(self) -> int:
        """Number of active weights."""
        return self._found()[1]

    @property
    def density(self) -> float:
        """Active share of the weights, 0..1; 1 for a mask over nothing."""
        return self.active / self.numel if self.numel else 1.0

    @property
    def sparsity(self) -> float:
        """Masked share of the weights, 1 - density."""
        return 1.0 - self.density

    @property
    def structure(self) -> str:
        """What the bits look like: empty, full, channels, blocks, n:m or unstructured.

        Found from the bits: `channels` where every row is empty or equal to one pattern over whole channels;
        `blocks` where the mask is constant on a grid (`block` has its size); `n:m` where exactly n of every m
        in 2, 4, 8, 16, 32 consecutive inputs are active (`n_of_m` has them).
        """
        return _KINDS[self._found()[0]]

    @property
    def known_channels(self) -> bool:
        """Whether the plan was asked for, for which the bits were looked at, and the structure is `channels`."""
        # Compiled code of torch 2.11 takes no list for a truth value.
        planned = self._plan is not None and len(self._plan) > 0
        return planned and self._facts is not None and _KINDS[self._facts[0]] == "channels"

    @property
    def block(self) -> tuple[int, int] | None:
        """Size of the largest grid cell on which a `blocks` mask is constant, in weights (rows, columns), else None."""
        facts = self._found()
        return (facts[2], facts[3]) if self.structure == "blocks" else None

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of an `n:m` mask, else None."""
        facts = self._found()
        return (facts[4], facts[5]) if self.structure == "n:m" else None

    @property
    def nbytes(self) -> int:
        """Bytes that the bits take, and the plan where it has been made."""
        return sum(t.numel() * t.element_size() for t in (self.bits, *(self._plan or [])))

    def active_channels(self) -> list[Tensor]:
        """The rows and columns that have an active weight, and the place of each row and column among these.

        Of a mask of whole channels these say all of it; kernels then work on the active ones alone.

        Returns:
            Four int32 tensors on the CPU: rows in rising order, columns in rising order, `[out]` each row's place in
            the first or -1, `[in * ...]` each column's place in the second or -1.
        """
        rows, columns = rows_columns(self.shape, "shape")
        dense = torch.ops.maskfuse.mask_unpack(self.bits.cpu(), columns)
        flags = [dense.any(1), dense.any(0)] if dense.numel() else [dense.new_zeros(rows), dense.new_zeros(columns)]
        lists = [f.nonzero().squeeze(1).int() for f in flags]
        places = [torch.where(f, f.cumsum(0) - 1, -1).int() for f in flags]
        return [*lists, *places]

    def _found(self) -> tuple[int, ...]:
        if self._facts is None:
            _, columns = rows_columns(self.shape, "shape")
            inner = math.prod(self.shape[2:])
            facts = torch.ops.maskfuse.mask_structure(self.bits.cpu(), columns, max(inner, 1))
            # Two threads may both get here; they find the same.
            object.__setattr__(self, "_facts", tuple(facts.tolist()))
        assert self._facts is not None
        return self._facts

    def __eq__(self, other: object) -> bool:
        """True for a mask of the same shape with the same bits, wherever it is."""
        if not isinstance(other, PackedMask):
            return NotImplemented
        return self is other or (self.shape == other.shape and torch.equal(self.bits.cpu(), other.bits.cpu()))

    def __hash__(self) -> int:
        """Equal masks have equal hashes."""
        return hash((self.shape, self.active))

    def __repr__(self) -> str:
        """Shape, active share, structure and device."""
        detail = {"blocks": f" {self.block}", "n:m": f" {self.n_of_m}"}.get(self.structure, "")
        return (
            f"Mask({list(self.shape)}, {self.active} of {self.numel} active ({self.density:.2%}), "
            f"{self.structure}{detail}, {self.device})"
        )
