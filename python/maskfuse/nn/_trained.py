"""Which entries of parameters are trained: what masked layers and `freeze` say together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..mask import Mask
from ._masked import MaskedLayer, weight_of
from .freeze import frozen_mask


@dataclass(frozen=True, eq=False)
class Trained:
    """A parameter of which only a part is trained."""

    parameter: Tensor
    mask: Mask  # wherever its bits are
    zeros: bool  # what is under the mask should be zero: masked layers have it alone, and none retains


def masked_layers(model: nn.Module) -> Iterable[tuple[str, MaskedLayer]]:
    """The masked layers of a model with their names, each once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, MaskedLayer))


def trained_parts(parameters: Iterable[Tensor], models: Iterable[nn.Module]) -> list[Trained]:
    """Those of `parameters` that are trained in part: as weights of the models' masked layers, where several share one
    the entries that any of them uses; and frozen ones, whosever they are.

    Raises:
        ValueError: a mask has another shape than its weight, or the weight of a masked layer is computed.
    """
    known = {id(parameter): parameter for parameter in parameters}
    masks: dict[int, Mask] = {}
    zeros: dict[int, bool] = {}
    for model in models:
        for name, layer in masked_layers(model):
            weight = weight_of(layer)
            where = f"the mask of layer {name!r} ({type(layer).__name__})"
            if weight is None or (not isinstance(weight, nn.Parameter) and id(weight) not in known):
                raise ValueError(
                    f"{where} cannot be kept: its weight is computed from other parameters; freeze those by nn.freeze"
                )
            if id(weight) not in known:
                continue
            if layer.mask.shape != weight.shape:
                raise ValueError(
                    f"{where} must have the shape of its weight, {list(weight.shape)}, got {list(layer.mask.shape)}; "
                    "set_mask sets one that fits"
                )
            other = masks.get(id(weight))
            masks[id(weight)] = layer.mask if other is None or other is layer.mask else other | layer.mask
            zeros[id(weight)] = zeros.get(id(weight), True) and not layer._retain
    result = []
    for key, parameter in known.items():
        mask, frozen = masks.get(key), frozen_mask(parameter)
        if frozen is not None:
            if frozen.shape != parameter.shape:
                raise ValueError(
                    f"the mask of a frozen parameter must have its shape, {list(parameter.shape)}, "
                    f"got {list(frozen.shape)}; freeze it again"
                )
            mask = frozen if mask is None else mask.to(frozen.device) & frozen
        if mask is not None:
            result.append(Trained(parameter, mask, zeros.get(key, False) and frozen is None))
    return result
