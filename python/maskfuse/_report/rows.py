"""What a report holds: a row for each layer, what else it mentions, and the sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._sharded import local
from ..mask import Mask


@dataclass(frozen=True)
class Bytes:
    """What a layer keeps, in bytes.

    Attributes:
        weight: of the weight, or a compact layer's values.
        mask: of the mask's bits.
        plan: of what kernels have derived from them.
        packed: of what `pack` copied.
        scores: of a gated layer's scores.
    """

    weight: int
    mask: int = 0
    plan: int = 0
    packed: int = 0
    scores: int = 0

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return self.weight + self.mask + self.plan + self.packed + self.scores


@dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
        batch: rows of a linear layer's input, or images.
        size: their height and width.
        channels_last: whether they are in that memory format.
        products: that each weight takes part in.
    """

    batch: int
    size: tuple[int, int] | None = None
    channels_last: bool = False
    products: int = 0


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: in the model.
        also: its other names.
        kind: its type's name.
        shape: of the weight.
        dtype: of the weight, as float32.
        device: of the weight.
        structure: the mask's, with the size of its blocks or n:m; of a gated layer the kind of its gates; "dense".
        weights: how many there are.
        active: how many are not masked; of gates, how many are above a half.
        trained: how many an optimizer gets a gradient for: active, not frozen, of a parameter that requires one.
        bytes: what is kept.
        absent: bytes of the weights that a compact layer does not keep.
        shares: the first layer that has the same weight.
        retained: whether values under the mask are kept.
        frozen: share of the weight that `nn.freeze` keeps; None where it was not called.
        calls: those with the example inputs, or the one that was asked for; empty where no input is known.
        kernel: what runs the first of them, forward.
        backend: whose kernel it is.
        mask: the mask, or open gates.
    """

    name: str
    also: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    structure: str
    weights: int
    active: int
    trained: int
    bytes: Bytes
    absent: int = 0
    shares: str | None = None
    retained: bool = False
    frozen: float | None = None
    calls: tuple[Call, ...] = ()
    kernel: str | None = None
    backend: str | None = None
    mask: Mask | None = field(default=None, repr=False, compare=False)

    @property
    def density(self) -> float:
        """Active share of the weights, 0..1."""
        return self.active / self.weights if self.weights else 1.0

    @property
    def masked(self) -> bool:
        """Whether there is a mask, or gates."""
        return self.mask is not None

    @property
    def flop(self) -> int:
        """Operations of all calls, on active weights: a multiplication and an addition for each product."""
        return 2 * self.active * sum(call.products for call in self.calls)

    @property
    def dense_flop(self) -> int:
        """The same on all weights."""
        return 2 * self.weights * sum(call.products for call in self.calls)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        first = self.calls[0] if self.calls else None
        return {
            "name": self.name,
            "also": list(self.also),
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "device": self.device,
            "structure": self.structure,
            "weights": self.weights,
            "active": self.active,
            "density": self.density,
            "trained": self.trained,
            "retained": self.retained,
            "frozen": self.frozen,
            "shares": self.shares,
            "bytes": self.bytes.__dict__ | {"total": self.bytes.total},
            "batch": None if first is None else first.batch,
            "size": None if first is None or first.size is None else list(first.size),
            "kernel": self.kernel,
            "backend": self.backend,
            "flop": self.flop,
            "dense_flop": self.dense_flop,
        }


@dataclass(frozen=True)
class Mention:
    """A module that decides what is computed and has no masked weight: `Bypass`, `ChannelGate` and their like.

    Attributes:
        name: in the model.
        kind: its type's name.
        detail: how it decides.
    """

    name: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Totals:
    """Sums over a model; what is shared counts once.

    Attributes:
        parameters: all of the model's, with the weights that compact layers do not keep.
        active: how many of them take part.
        masked_weights: weights of masked, compact and gated layers.
        masked_active: how many of these are active.
        dense_bytes: what the parameters of the plain model take.
        bytes: what is kept now.
        flop: floating-point operations of linear layers and convolutions, masked or not, on active weights; None
            without example inputs.
        dense_flop: the same on all weights.
    """

    parameters: int
    active: int
    masked_weights: int
    masked_active: int
    dense_bytes: int
    bytes: int
    flop: int | None = None
    dense_flop: int | None = None

    @property
    def density(self) -> float:
        """Active share of the weights of masked, compact and gated layers, 0..1; 1 where there are none."""
        return self.masked_active / self.masked_weights if self.masked_weights else 1.0


def structure_of(mask: Mask) -> str:
    """The mask's structure, with the size of its blocks or n:m."""
    if mask.block is not None:
        return "blocks {}x{}".format(*mask.block)
    if mask.n_of_m is not None:
        return "n:m {}:{}".format(*mask.n_of_m)
    return mask.structure


def nbytes(t: Tensor | None) -> int:
    """Bytes of what is here of a tensor."""
    if t is None:
        return 0
    t = local(t)
    return t.numel() * t.element_size()


def plan_bytes(mask: Mask) -> int:
    """Bytes of what kernels derive from the mask, where it was made."""
    return mask.nbytes - nbytes(mask.bits)


def shares(first: dict[Any, str], weight: Any, name: str) -> str | None:
    """The layer that the same weight was met in first, or None, and `name` is kept as that one's. `weight` is a key."""
    other = first.setdefault(weight, name)
    return None if other == name else other


def dtype_name(dtype: torch.dtype) -> str:
    """Without the package."""
    return str(dtype).removeprefix("torch.")


def totals(rows: Iterable[LayerReport], parameters: int, parameter_bytes: int, scores: int, with_calls: bool) -> Totals:
    """Sums of rows, whose weights and masks may be shared, beside a model's parameters (`scores` of them of gates)."""
    rows = list(rows)
    own = [row for row in rows if row.shares is None]
    masked = [row for row in own if row.masked]
    weights, active = sum(row.weights for row in masked), sum(row.active for row in masked)
    masks = {id(row.mask): row.bytes for row in rows if row.masked}
    beside = sum(b.mask + b.plan for b in masks.values()) + sum(row.bytes.packed for row in rows)
    gates = sum(row.bytes.scores for row in own)
    absent = sum(row.absent for row in own)
    parameters += sum(row.weights - row.active for row in own if row.absent) - scores
    return Totals(
        parameters=parameters,
        active=parameters - weights + active,
        masked_weights=weights,
        masked_active=active,
        dense_bytes=parameter_bytes - gates + absent,
        bytes=parameter_bytes + beside,
        flop=sum(row.flop for row in rows) if with_calls else None,
        dense_flop=sum(row.dense_flop for row in rows) if with_calls else None,
    )


def products_of(shape: Iterable[int], output: Tensor) -> int:
    """Products that each weight of a layer takes part in, in a call with that output."""
    channels = next(iter(shape))
    return math.prod(output.shape) // channels if channels else 0
