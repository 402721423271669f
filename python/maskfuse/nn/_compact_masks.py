"""How the mask of compact layers changes, with gradient, optimizer's state and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._checks import describe
from .._sharded import is_sharded
from ..functional.compact_linear import stand_in
from ..mask import Mask
from ._optimizer_state import Optimizers, change, checked_optimizers, expect_no_state, replace
from .freeze import freeze, frozen_mask

if TYPE_CHECKING:
    from ._compact import CompactLayer


@torch.no_grad()
def set_masks(layers: Sequence[CompactLayer], mask: Mask | Tensor, optimizer: Optimizers | None) -> None:
    """`CompactLayer.set_mask` of layers that share their values."""
    first = layers[0]
    values = first.values
    if not isinstance(values, nn.Parameter):
        raise ValueError(f"the values of a layer must be a parameter when its mask is set, got {describe(values)}")
    if is_sharded(values):
        raise ValueError(f"the values of a layer must not be sharded when its mask is set, got {describe(values)}")
    new = first._placed(first._fitting(mask, stand_in(values, first.mask)))
    optimizers = checked_optimizers(optimizer, values)
    old = first.mask
    if new == old:
        return
    if values.is_meta:
        replace(values, values.new_empty(new.active).detach())
    else:
        stays, stayed = new.dense()[old.dense()], old.dense()[new.dense()]

        def moved(t: Tensor, fill: float) -> Tensor:
            result = t.new_full((new.active,), fill)
            result[stayed.to(t.device)] = t[stays.to(t.device)]
            return result

        frozen = moved_frozen(values, old, new)
        change(values, moved, optimizers)
        if frozen is not None:
            freeze(values, frozen)
        if not optimizers:
            expect_no_state(values)
    for layer in layers:
        layer.unpack()
        layer._mask = new
        show_size(layer)


def show_size(layer: CompactLayer) -> None:
    """Has compiled code look at the values' size again: torch 2.11 does so where the dict that has them is another."""
    layer._parameters = dict(layer._parameters)


def spread_frozen(frozen: Mask, mask: Mask) -> Tensor:
    """By which a weight is frozen whose values are: what is under the mask is not."""
    dense = torch.ones(mask.shape, dtype=torch.bool, device=mask.device)
    dense[mask.dense()] = frozen.to(mask.device).dense()
    return dense


def moved_frozen(values: Tensor, old: Mask, new: Mask) -> Tensor | None:
    """By which values that are frozen are so under another mask: weights that stay as before, new ones not."""
    frozen = frozen_mask(values)
    return None if frozen is None else spread_frozen(frozen, old.to(frozen.device))[new.to(frozen.device).dense()]
