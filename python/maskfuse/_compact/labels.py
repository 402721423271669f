"""Names for the indices of tensors, so that it can be said which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Dim: TypeAlias = "tuple[int, ...] | None"  # the atom of each index, or None where all of them stay


class Atoms:
    """Classes of indices that are cut together or not at all; the class of atom 0 is never cut."""

    def __init__(self) -> None:
        self._parents = [0]

    def __len__(self) -> int:
        return len(self._parents)

    def new(self, count: int) -> tuple[int, ...]:
        """As many atoms, each a class of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return tuple(range(first, first + count))

    def root(self, atom: int) -> int:
        """The smallest atom of a class."""
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = parents[parents[atom]]
            atom = parents[atom]
        return atom

    def join(self, a: Dim, b: Dim) -> Dim:
        """Makes the indices of two dims of one size go together, one by one; returns what names them from now on."""
        if a is None or b is None:
            self.stay(b if a is None else a)
            return None
        for one, other in zip(a, b, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parents[high] = low
        return a

    def stay(self, dim: Dim) -> None:
        """Makes these indices stay."""
        for atom in dim or ():
            self._parents[self.root(atom)] = 0

    def roots(self) -> Tensor:
        """int64 `[atoms]`: the smallest atom of each one's class."""
        return torch.tensor([self.root(atom) for atom in range(len(self._parents))])


@dataclass(frozen=True, eq=False)
class Constant:
    """Which indices of a tensor hold one value everywhere, whatever the input is.

    `values` is float64 `[size of dim]` on the CPU, with NaN where they do not; where `dim` is None it has one value,
    which all of the tensor holds.
    """

    dim: int | None
    values: Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of a tensor in a trace.

    `source` is the parameter or buffer that it is, possibly transposed or cast, and which of that one's dims each of
    its own is.
    """

    dims: tuple[Dim, ...]
    constant: Constant | None = None
    source: tuple[Tensor, tuple[int | None, ...]] | None = None

    def values(self, dim: int, size: int) -> Tensor:
        """The constants along `dim`, float64 `[size]`, with NaN where there are none."""
        if self.constant is not None and self.constant.dim is None:
            return self.constant.values.expand(size)
        if self.constant is not None and self.constant.dim == dim:
            return self.constant.values
        return torch.full((size,), torch.nan, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Reader:
    """A product of an activation with a weight: the only kind of op that may read a channel and do without it."""

    weight: Tensor | None  # the parameter; None for one that is computed
    module: nn.Module | None  # the plain layer it was called for
    active: Tensor  # bool [out, in / groups] on the CPU: whether any weight is
    inputs: tuple[int, ...]  # atom of each input channel
    outputs: tuple[int, ...]  # atom of each output channel
    constants: Tensor  # float64 [in]: what the channels hold, NaN where that is no constant
    padded: bool  # zeros beside the image, so that a constant channel adds another sum at the border
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Together:
    """Channels that a group norm takes statistics of in groups: those of a group go together."""

    module: nn.Module
    channels: tuple[int, ...]
    groups: int
