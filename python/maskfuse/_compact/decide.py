"""Which channels go: those that change nothing of what the model returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import Dim, Reader
from .products import by_groups
from .trace import Trace


@dataclass(frozen=True, eq=False)
class Decision:
    """What is cut, as bool of each atom, and where constants are to be added to a bias."""

    dead: Tensor

    def of(self, dim: Dim, size: int) -> Tensor:
        """Bool `[size]`: the indices of a dim that go."""
        return torch.zeros(size, dtype=torch.bool) if dim is None else self.dead[torch.tensor(dim)]


class _Product:
    """A reader whose atoms are replaced by the classes they ended in."""

    def __init__(self, reader: Reader, roots: Tensor, foldable: bool) -> None:
        self.inputs, self.outputs = roots[torch.tensor(reader.inputs)], roots[torch.tensor(reader.outputs)]
        self.groups, self.active = reader.groups, reader.active
        constants = reader.constants
        self.absorbed = ~constants.isnan() if foldable else constants == 0

    def needed(self, dead: Tensor) -> Tensor:
        """The classes that rows which stay read, and that are not constants which can do without."""
        rows = self.active & ~dead[self.outputs][:, None]
        read = rows.view(self.groups, -1, rows.shape[1]).any(1).reshape(-1)
        return self.inputs[read & ~self.absorbed]


def decide(trace: Trace) -> Decision:
    """The largest set of channels that nothing needs.

    A channel goes where each product that reads it has no active weight on it in a row that stays, or meets a constant
    there which is zero or can be added to the layer's bias. As rows go, the columns that they alone read go too: so it
    is repeated until nothing changes. Where sizes would not fit any more (groups of a convolution that differ, parts of
    a norm's group, a layer without channels) some channels are made to stay, and all of it is found anew.
    """
    roots = trace.atoms.roots()
    products = [_Product(reader, roots, foldable(trace, reader)) for reader in trace.readers]
    stay = torch.zeros(len(roots), dtype=torch.bool)
    stay[0] = True
    while True:
        dead = _fixpoint(products, stay, len(roots))
        kept = torch.cat([_unfit(trace, products, roots, dead), torch.zeros(0, dtype=torch.int64)])
        if len(kept) == 0:
            return Decision(dead[roots])
        stay[kept] = True


def foldable(trace: Trace, reader: Reader) -> bool:
    """Whether a constant that the product reads can be added to its bias: it is one call of a plain layer, whose
    parameters are nobody else's, and meets the constant at every place."""
    if reader.module is None or reader.padded:
        return False
    if sum(other.weight is reader.weight for other in trace.readers) > 1:
        return False
    return not trace.shared(reader.module)


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


def folded_bias(reader: Reader, weight: Tensor, decision: Decision) -> Tensor:
    """float64 `[out]`: what the constant channels that go added to each row."""
    gone = decision.of(reader.inputs, len(reader.inputs)) & ~reader.constants.isnan()
    values = torch.where(gone, reader.constants, 0)
    taps = weight.detach().double().cpu().flatten(2).sum(2) if weight.dim() > 2 else weight.detach().double().cpu()
    return (taps * by_groups(values, reader.groups, len(taps))).sum(1)
