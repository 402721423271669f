"""Plain layers whose weight is computed before each call: by `torch.nn.utils.prune`, which can be undone, or else."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune

from .functional._check import floating
from .mask import Mask


def checked_weight(name: str, layer: nn.Module) -> nn.Parameter:
    """The parameter that a mask on `layer` is a mask of.

    Raises:
        TypeError: its dtype is one that no kernel takes.
        ValueError: there is none, or calls of the layer would not get to a masked layer's `forward`.
    """
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"layer {name!r} has a parametrization and cannot be masked: exclude it, or call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if "forward" in layer.__dict__:
        raise ValueError(
            f"layer {name!r} has a forward of its own, which would be called in place of the masked one: "
            "exclude it, or delete that attribute first"
        )
    weight = layer._parameters.get("weight" if _pruning(layer) is None else "weight_orig")
    if weight is None:
        raise ValueError(
            f"the weight of layer {name!r} is computed from other parameters and cannot be masked: exclude it, or "
            "remove what computes it (weight_norm, spectral_norm) first"
        )
    floating(weight, f"the weight of layer {name!r}")
    return weight


def pruned_mask(name: str, layer: nn.Module) -> Mask | None:
    """What `torch.nn.utils.prune` left of the weight; None where it did not prune it.

    Raises:
        ValueError: its mask is on meta, or not of zeros and ones.
    """
    if _pruning(layer) is None:
        return None
    mask = layer._buffers["weight_mask"]
    assert mask is not None
    if mask.is_meta or not bool(((mask == 0) | (mask == 1)).all()):
        where = "one on meta" if mask.is_meta else "other values"
        raise ValueError(f"the pruning mask of layer {name!r} must be of zeros and ones, got {where}")
    return Mask.from_dense(mask != 0)


def remove_pruning(layer: nn.Module) -> None:
    """Makes `weight_orig`, the same parameter, the weight again, in its place before the bias."""
    key = _pruning(layer)
    if key is None:
        return
    del layer._forward_pre_hooks[key]
    del layer._buffers["weight_mask"]
    del layer.weight  # the product, a plain attribute
    layer.register_parameter("weight", layer._parameters.pop("weight_orig"))
    if "bias" in layer._parameters:
        layer._parameters["bias"] = layer._parameters.pop("bias")


def _pruning(layer: nn.Module) -> int | None:
    """The key of the hook that prunes the weight."""
    for key, hook in layer._forward_pre_hooks.items():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight":
            return key
    return None
