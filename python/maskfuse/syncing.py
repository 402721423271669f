"""`sync_masks`: what layers hold beside parameters and buffers, carried from one model to another one like it."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ._checks import check_module
from .mask import Mask
from .nn._compact import CompactLayer
from .nn._compact_masks import set_masks
from .nn._gated import GatedLayer
from .nn._masked import MaskedLayer
from .nn.channel_gate import ChannelGate
from .nn.freeze import freeze, frozen_mask, unfreeze


def sync_masks(to: nn.Module, source: nn.Module) -> bool:
    """Gives a model the masks of another one like it; returns whether any was another.

    Masks are neither parameters nor buffers, so what copies or averages those leaves them alone. An `AveragedModel`
    (stochastic weight averaging, Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization", arXiv:1803.05407; or an exponential average, as Tarvainen & Valpola 2017, arXiv:1703.01780, take)
    has the masks of the time it was made. Where a schedule changes them since, call this after each update::

        averaged.update_parameters(model)
        maskfuse.sync_masks(averaged, model)

    Weights that the source masks are then zero in the average too (or retained, as in the source); those that it
    uncovered since carry the average of what they were, zeros of the time under the mask included. Averages of weights
    under a mask that stays are zero by themselves, since the weights are.

    A compact layer's average has values for the mask that it has: call this before `update_parameters` too, which else
    fails, or where as many weights are active as before adds up those of different weights. New ones are averaged from
    zero on.

    Synced are the masks of masked layers, with `retain`, and of compact layers; the masks that parameters are frozen
    by, where one that is not frozen in the source is unfrozen; fixed masks of `ChannelGate`; temperatures of gated
    layers. Masks that are equal are not set again, so a call costs a comparison of a few objects while nothing changes.

    Args:
        to: the model that gets masks; `AveragedModel`, `DistributedDataParallel` and compiled models stand for what
            they wrap.
        source: the model that has them, with the same layers under the same names.

    Raises:
        TypeError: one of the two is no module.
        ValueError: the two do not have the same layers under the same names, or weights differ in shape; nothing is
            changed then.
    """
    for name, model in (("to", to), ("source", source)):
        check_module(model, name)
    return give(to, held(source), "source")


@dataclass(frozen=True, eq=False)
class Held:
    """What one layer or parameter holds beside its values."""

    kind: str
    value: Any  # a Mask, a bool tensor, a number or None
    retain: bool = False
    owner: Any = None  # the layer or parameter; None where it is another process's

    def same(self, other: Held) -> bool:
        """Whether the other holds the same."""
        if isinstance(self.value, Tensor) and isinstance(other.value, Tensor):
            return torch.equal(self.value.cpu(), other.value.cpu())
        return bool(self.value == other.value) and self.retain == other.retain

    def fits(self, other: Held) -> bool:
        """Whether this one's owner takes what the other holds."""
        if self.kind == "channels":  # a gate that chooses by what channels hold has no mask, and takes none
            return (self.value is None) == (other.value is None)
        if self.kind == "frozen values":  # there will be as many as in the other, whose mask comes first
            return True
        return not isinstance(other.value, Mask) or other.value.shape == _shape(self.owner)

    def take(self, other: Held) -> None:
        """Gives the owner what the other holds."""
        if self.kind == "mask":
            self.owner.set_mask(other.value, retain=other.retain)
        elif self.kind == "values":
            set_masks(self.owner, other.value, None)
        elif self.kind == "temperature":
            self.owner.temperature = other.value
        elif self.kind == "channels":
            self.owner.set_mask(other.value.to(self.value.device))
        elif other.value is None:
            unfreeze(self.owner)
        else:
            freeze(self.owner, other.value)

    def sent(self) -> Held:
        """For another process: without the owner, on the CPU."""
        value = self.value.to("cpu") if isinstance(self.value, (Mask, Tensor)) else self.value
        return Held(self.kind, value, self.retain)

    def digest(self) -> str:
        """Of equal ones the same in every process."""
        value = self.value
        if isinstance(value, Mask):
            value = (*value.shape, value.bits)
        parts = value if isinstance(value, tuple) else (value,)
        return "/".join([*(_hashed(part) for part in parts), str(self.retain)])


def held(model: nn.Module) -> dict[str, Held]:
    """What a model's layers and parameters hold, by what error messages call it."""
    model = unwrapped(model)
    result: dict[str, Held] = {}
    sharing: dict[int, list[CompactLayer]] = {}  # layers that have the same values have one mask, set at once
    for name, module in model.named_modules():
        if isinstance(module, CompactLayer):
            layers = sharing.setdefault(id(module.values), [])
            layers.append(module)
            if len(layers) == 1:
                result[f"mask of compact layer {name!r}"] = Held("values", module.mask, owner=layers)
        elif isinstance(module, MaskedLayer):
            result[f"mask of layer {name!r}"] = Held("mask", module.mask, module._retain, module)
        elif isinstance(module, GatedLayer):
            result[f"temperature of layer {name!r}"] = Held("temperature", module.temperature, owner=module)
        elif isinstance(module, ChannelGate):
            result[f"mask of gate {name!r}"] = Held("channels", module.mask, owner=module)
    for name, parameter in model.named_parameters():
        kind = "frozen values" if id(parameter) in sharing else "frozen"
        result[f"frozen mask of parameter {name!r}"] = Held(kind, frozen_mask(parameter), owner=parameter)
    return result


def give(model: nn.Module, values: dict[str, Held], argument: str) -> bool:
    """Sets what another model holds; returns whether anything was another. `argument` names the other in errors."""
    own = held(model)
    odd = sorted(own.keys() ^ values.keys())
    if odd:
        raise ValueError(
            f"{argument} must have the same layers and parameters under the same names, but only one of the two has a "
            f"{odd[0]}"
        )
    changes = [(name, own[name], value) for name, value in values.items() if not own[name].same(value)]
    for name, before, value in changes:
        if not before.fits(value):
            raise ValueError(f"the {name} must fit its owner, but that of {argument} is {value.value}")
    for _, before, value in changes:
        if before.kind != "frozen values":
            before.take(value)
    for name, before in own.items():  # now that masks of values have moved with their layers'
        if before.kind == "frozen values" and frozen_mask(before.owner) != values[name].value:
            before.take(values[name])
    return bool(changes)


def _shape(owner: Any) -> Any:
    if isinstance(owner, list):  # of compact layers, whose weight is not there
        return owner[0].mask.shape
    return owner.shape if isinstance(owner, Tensor) else owner.weight.shape


def _hashed(part: Any) -> str:
    if not isinstance(part, Tensor):
        return str(part)
    part = part.cpu().contiguous()
    values = ctypes.string_at(part.data_ptr(), part.numel() * part.element_size())
    return f"{tuple(part.shape)}{hashlib.blake2b(values, digest_size=16).hexdigest()}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of averages, `DistributedDataParallel` and compiled models."""
    while True:
        if isinstance(model, (AveragedModel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's; its class is not imported for it
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
