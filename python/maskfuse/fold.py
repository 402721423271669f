"""`fold`: a model's masked layers become plain ones."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

from ._checks import check_module
from ._fast_path import set_fast_paths
from .nn._compact import CompactLayer
from .nn._gated import GatedLayer
from .nn._masked import MaskedLayer, weight_of
from .nn.compact_conv2d import CompactConv2d
from .nn.compact_linear import CompactLinear
from .nn.masked_conv2d import MaskedConv2d
from .nn.masked_linear import MaskedLinear

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """Makes the masked and compact layers of a model plain `nn.Linear` and `nn.Conv2d` layers; returns the model.

    In place, as `convert`: the layers and their parameters stay the objects they are, with hooks, device, dtype, mode
    and attributes. Under the mask the weight is zero, also where values were retained there, and nothing else of a
    weight changes by a bit. The mask is gone: training the plain layers moves all of their weights, and no schedule
    of the masked ones may step any more. A compact layer's `values` become a new parameter, `weight`, of which an
    optimizer knows nothing; layers that shared values share it. The fast paths that `convert` turned off are on again.

    Outputs are those of torch's kernels on the same weights: bit for bit the masked model's where that ran them too,
    on the whole weight, as it does under `use_backend("reference")`; else up to rounding, as terms are summed in
    another order. Calls that pass `channels=` are for masked layers alone.

    Args:
        model: any module; a masked layer too.

    Raises:
        TypeError: not a module; a layer is gated (its `harden()` gives the masked layer to put in its place); or a
            masked layer has a subclass's type or a parametrization, which a plain one would drop.
        ValueError: layers share a weight under different masks, or something else that is not masked reads values
            under a mask. Nothing is changed then.

    Warns:
        UserWarning: no layer is masked, as in a model that was folded before; it is returned as it is.
    """
    check_module(model)
    names = {module: name for name, module in model.named_modules()}
    layers = _checked_layers(names)
    if not layers:
        warnings.warn(
            f"model ({type(model).__name__}) has no masked layers: it is plain, or was folded before",
            UserWarning,
            stacklevel=2,
        )
    _check_shared(names, layers)
    expanded: dict[int, nn.Parameter] = {}  # by the values that layers share
    for layer in layers:
        of_plain: Any = layer
        if isinstance(layer, CompactLayer):
            plain = layer.masked.plain
            layer._tear_down(expanded)
        else:
            plain = layer.plain
            layer._tear_down()
        of_plain.__class__ = plain
    set_fast_paths(model)
    return model


def _checked_layers(names: dict[nn.Module, str]) -> list[MaskedLayer | CompactLayer]:
    layers: list[MaskedLayer | CompactLayer] = []
    for module, name in names.items():
        if isinstance(module, GatedLayer):
            raise TypeError(
                f"layer {name!r} is gated ({type(module).__name__}): put its harden(), which is masked, in its place "
                "before folding"
            )
        if not isinstance(module, (MaskedLayer, CompactLayer)):
            continue
        if type(module) not in (MaskedLinear, MaskedConv2d, CompactLinear, CompactConv2d):
            raise TypeError(
                f"layer {name!r} ({type(module).__name__}) must be exactly a MaskedLinear or MaskedConv2d, or "
                "compact: what a subclass or a parametrization adds would be lost"
            )
        kept = weight_of(module) if isinstance(module, MaskedLayer) else module._parameters.get("values")
        if not isinstance(kept, nn.Parameter):
            raise TypeError(f"the weight of layer {name!r} must be a parameter, not computed from others")
        layers.append(module)
    return layers


def _check_shared(names: dict[nn.Module, str], layers: list[MaskedLayer | CompactLayer]) -> None:
    """Raises where zeros under a layer's mask would change what another reader of the weight computes."""
    first: dict[int, MaskedLayer | CompactLayer] = {}
    for layer in layers:
        other = first.setdefault(id(layer._kept), layer)
        if layer.mask != other.mask:
            raise ValueError(
                f"layers {names[other]!r} and {names[layer]!r} share a weight and must have one mask, "
                f"got {other.mask.active} and {layer.mask.active} active weights; set the same mask in both"
            )
    for module, name in names.items():
        if isinstance(module, (MaskedLayer, CompactLayer)):
            continue
        for parameter in module._parameters.values():
            reads = first.get(id(parameter))
            if isinstance(reads, MaskedLayer) and reads._has_values_under_mask():
                raise ValueError(
                    f"the weight of layer {names[reads]!r} is not zero under its mask, and {name!r} "
                    f"({type(module).__name__}) reads it too: fold would change what that computes"
                )


__all__ = ["fold"]
