"""The weights that a schedule masks, and how values of several are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .._checks import check_module, describe
from .._sharded import whole
from ..mask import Mask
from ..nn._compact import CompactLayer
from ..nn._masked import MaskedLayer, weight_of
from ..nn._with_mask import LayerWithMask

Selection: TypeAlias = "Callable[[str, LayerWithMask], bool] | Iterable[str]"


@dataclass(frozen=True, eq=False)
class MaskedWeight:
    """A weight and the masked layers that read it, which are several where it is shared."""

    name: str  # of the first layer
    layers: tuple[LayerWithMask, ...]  # all of them masked, or all compact
    dense: bool  # kept so

    @property
    def weight(self) -> Tensor:
        """The parameter as it is now, of a compact layer its values: moves and FSDP put another tensor in its place."""
        weight = _parameter_of(self.layers[0])
        if weight is None:
            raise ValueError(f"the weight of layer {self.name!r} must be a parameter, not computed from others")
        return weight

    @property
    def masked(self) -> list[MaskedLayer]:
        """Its layers where they keep a weight in full."""
        return [layer for layer in self.layers if isinstance(layer, MaskedLayer)]

    @property
    def compact(self) -> list[CompactLayer]:
        """Its layers where they keep the active weights alone."""
        return [layer for layer in self.layers if isinstance(layer, CompactLayer)]

    @torch.no_grad()
    def in_full(self) -> Tensor:
        """The weight in full, on every process; of a compact layer with zeros under the mask."""
        return self.compact[0].weight if self.compact else whole(self.weight.detach())

    @property
    def mask(self) -> Mask:
        """The mask of its layers."""
        return self.layers[0].mask

    @property
    def numel(self) -> int:
        """Number of weights, active or not."""
        return self.mask.numel

    def check_masked(self) -> None:
        """Raises RuntimeError where a layer is masked no more."""
        for layer in self.layers:
            if not isinstance(layer, LayerWithMask):
                raise RuntimeError(
                    f"layer {self.name!r} ({type(layer).__name__}) is masked no more: the model was folded, and this "
                    "schedule has nothing left to do"
                )

    def magnitude(self, all_of_it: bool = False) -> Tensor:
        """Of the weight's shape, float32 or float64: absolute values, and -1 under the mask, or everywhere values."""
        value = self.in_full().abs()
        value = value if value.dtype == torch.float64 else value.float()
        if not all_of_it:
            value = torch.where(self.mask.dense(), value, -1.0)
        if bool(value.isnan().any()):
            raise ValueError(f"the weight of layer {self.name!r} must not contain NaN, got {describe(self.weight)}")
        return value


class Pool:
    """Weights that compete with one another: those of one layer, or of all."""

    def __init__(self, members: Sequence[MaskedWeight]) -> None:
        self.members = members

    @property
    def active(self) -> int:
        """Number of active weights."""
        return sum(member.mask.active for member in self.members)

    @property
    def device(self) -> torch.device:
        """Where they are compared: the first member's."""
        return self.members[0].weight.device

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """One flat tensor of a tensor for each member."""
        return torch.cat([t.reshape(-1).to(self.device) for t in tensors])

    def split(self, flat: Tensor) -> list[Tensor]:
        """What `join` joined, each in its weight's shape and on its device."""
        parts = flat.split([member.numel for member in self.members])
        return [
            part.reshape(member.mask.shape).to(member.weight.device)
            for part, member in zip(parts, self.members, strict=True)
        ]


def masked_weights(model: nn.Module, layers: Selection | None, dense: Selection) -> list[MaskedWeight]:
    """The weights of the masked layers that `layers` selects (None: all), in the model's order, each once.

    Raises:
        TypeError: `model` is no module.
        ValueError: there is none, a name that no masked layer has, one that is to stay dense and is masked, or layers
            that share a weight under different masks.
    """
    check_module(model)
    names: dict[LayerWithMask, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LayerWithMask):
            names.setdefault(module, []).append(name)
    if not names:
        raise ValueError(
            f"model ({type(model).__name__}) must have masked layers, and has none: "
            "MaskedLinear.from_dense and MaskedConv2d.from_dense make them"
        )
    chosen = set(names) if layers is None else _selected(names, layers, "layers")
    kept_dense = _selected(names, dense, "dense")
    sharing: dict[int, list[LayerWithMask]] = {}
    for layer in names:
        weight = _parameter_of(layer)
        sharing.setdefault(id(layer if weight is None else weight), []).append(layer)
    result = []
    for group in sharing.values():
        if chosen.isdisjoint(group):
            continue
        one = MaskedWeight(names[group[0]][0], tuple(group), not kept_dense.isdisjoint(group))
        shape = one.layers[0].mask.shape if one.compact else one.weight.shape
        for layer in group:
            if layer.mask.shape != shape:
                raise ValueError(
                    f"the mask of layer {names[layer][0]!r} must have the shape of its weight, {list(shape)}, "
                    f"got {list(layer.mask.shape)}"
                )
            if layer.mask != one.mask:
                raise ValueError(
                    f"layers {names[group[0]][0]!r} and {names[layer][0]!r} share a weight and must have one mask, "
                    f"got {one.mask.active} and {layer.mask.active} active weights; set the same mask in both"
                )
            if one.dense and layer.mask.active != layer.mask.numel:
                raise ValueError(
                    f"layer {names[layer][0]!r} is to stay dense, and has {layer.mask.active} of {layer.mask.numel} "
                    "weights active; set a mask of all of them first"
                )
        result.append(one)
    if all(one.dense for one in result):
        raise ValueError(f"layers must select masked layers that may be masked, got none of {_known(names)}")
    return result


def _selected(names: dict[LayerWithMask, list[str]], selection: Selection, argument: str) -> set[LayerWithMask]:
    if callable(selection):
        return {layer for layer, known in names.items() if selection(known[0], layer)}
    if isinstance(selection, str):
        raise TypeError(f"{argument} must be names or a function of name and layer, got one string, {selection!r}")
    wanted = set(selection)
    unknown = wanted.difference(*names.values())
    if unknown:
        raise ValueError(f"{argument} must name masked layers, {_known(names)}; got {sorted(unknown)}")
    return {layer for layer, known in names.items() if not wanted.isdisjoint(known)}


def _known(names: dict[LayerWithMask, list[str]]) -> list[str]:
    return [known[0] for known in names.values()]


def _parameter_of(layer: LayerWithMask) -> Tensor | None:
    return layer._parameters.get("values") if isinstance(layer, CompactLayer) else weight_of(layer)  # type: ignore[arg-type]
