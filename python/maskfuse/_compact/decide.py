"""Which channels go: those that change nothing of what the model returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import Dim, Reader
from .trace import Trace


@dataclass(frozen=True, eq=False)
class Decision:
    """What is cut.

    `dead` is bool of each atom. `carriers` has the channel of a reader, by its index, that stands for all other
    constants which go there.
    """

    dead: Tensor
    carriers: dict[int, int]

    def of(self, dim: Dim, size: int) -> Tensor:
        """Bool `[size]`: the indices of a dim that go."""
        return torch.zeros(size, dtype=torch.bool) if dim is None else self.dead[torch.tensor(dim)]


class _Product:
    """A reader whose atoms are replaced by the classes they ended in."""

    def __init__(self, reader: Reader, roots: Tensor, alone: bool) -> None:
        self.inputs, self.outputs = roots[torch.tensor(reader.inputs)], roots[torch.tensor(reader.outputs)]
        self.groups, self.active = reader.groups, reader.active
        self.constants = reader.constants
        self.absorbed = ~self.constants.isnan() if alone and not reader.padded else self.constants == 0
        self.merges = alone and reader.padded and reader.groups == 1

    def read(self, dead: Tensor) -> Tensor:
        """Bool `[in]`: the channels that rows which stay read, but for constants that can do without."""
        rows = self.active & ~dead[self.outputs][:, None]
        return rows.view(self.groups, -1, rows.shape[1]).any(1).reshape(-1) & ~self.absorbed

    def needed(self, dead: Tensor) -> Tensor:
        """The classes of the channels that are read."""
        return self.inputs[self.read(dead)]

    def merge(self, dead: Tensor) -> int | None:
        """Of the constants that are needed, the largest, which is to stand for the others; None for less than two.

        A padded convolution makes of a constant what it makes of another one, times their ratio, at the border too.
        """
        found = self.read(dead) & ~self.constants.isnan()
        if not self.merges or int(found.sum()) < 2:
            return None
        carrier = int(torch.where(found, self.constants.abs(), 0).argmax())
        self.absorbed |= found
        return carrier


def decide(trace: Trace) -> Decision:
    """The largest set of channels that nothing needs.

    A channel goes where each product that reads it has no active weight on it in a row that stays, or meets a constant
    there which is zero or can be added to the layer's bias. As rows go, the columns that they alone read go too: so it
    is repeated until nothing changes. Where sizes would not fit any more (groups of a convolution that differ, parts of
    a norm's group, a layer without channels) some channels are made to stay, and all of it is found anew.

    Of the constants that are left then because zeros are beside them, each layer keeps one, which stands for all.
    """
    roots = trace.atoms.roots()
    products = [_Product(reader, roots, alone(trace, reader)) for reader in trace.readers]
    stay = torch.zeros(len(roots), dtype=torch.bool)
    stay[0] = True
    dead = _settled(trace, products, roots, stay.clone())
    found = {i: product.merge(dead) for i, product in enumerate(products)}
    carriers = {i: channel for i, channel in found.items() if channel is not None}
    for i, channel in carriers.items():
        stay[products[i].inputs[channel]] = True
    if carriers:
        dead = _settled(trace, products, roots, stay)
    return Decision(dead[roots], carriers)


def alone(trace: Trace, reader: Reader) -> bool:
    """Whether what is read may be put into the product's parameters: it is the one call of a plain layer, and the
    parameters are nobody else's."""
    if reader.module is None:
        return False
    if sum(other.weight is reader.weight for other in trace.readers) > 1:
        return False
    return not trace.shared(reader.module)


def _settled(trace: Trace, products: list[_Product], roots: Tensor, stay: Tensor) -> Tensor:
    """Bool of each class: what goes where `stay` does not, and more that has to stay with it."""
    while True:
        dead = _fixpoint(products, stay, len(roots))
        kept = _unfit(trace, products, roots, dead)
        if len(kept) == 0:
            return dead
        stay[kept] = True


def _fixpoint(products: list[_Product], stay: Tensor, atoms: int) -> Tensor:
    dead = torch.zeros(atoms, dtype=torch.bool)
    while True:
        needed = stay.clone()
        for product in products:
            needed[product.needed(dead)] = True
        if torch.equal(~needed, dead):
            return dead
        dead = ~needed


def _unfit(trace: Trace, products: list[_Product], roots: Tensor, dead: Tensor) -> Tensor:
    """Classes that have to stay for the sizes to fit."""
    kept = []
    for _, dims in trace.parameters.values():
        for dim in dims:
            if dim and bool(dead[(named := roots[torch.tensor(dim)])].all()):
                kept.append(named[:1])  # one channel at least
    for product in products:
        if product.groups > 1:
            kept.extend(_uneven(product, dead))
    for norm in trace.together:
        named = roots[torch.tensor(norm.channels)].view(norm.groups, -1)
        gone = dead[named]
        kept.append(named[gone & ~gone.all(1, keepdim=True)])
    return torch.cat([torch.zeros(0, dtype=torch.int64), *kept])


def _uneven(product: _Product, dead: Tensor) -> list[Tensor]:
    """Of a convolution in groups: channels by which one group would have fewer inputs, or outputs, than another."""
    inputs, outputs = product.inputs.view(product.groups, -1), product.outputs.view(product.groups, -1)
    left = ~(dead[inputs].all(1) & dead[outputs].all(1))
    kept = []
    for named in (inputs[left], outputs[left]):
        gone = dead[named]
        most = gone.sum(1)
        fewest = int(most.min()) if len(most) else 0
        kept.append(named[gone & (gone.cumsum(1) > fewest)])
    return kept
