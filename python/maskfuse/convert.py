"""`convert`: a model's plain layers become masked ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._checks import check_module
from ._computed_weight import checked_weight, pruned_mask, remove_pruning
from ._fast_path import set_fast_paths
from ._sharded import whole
from .functional._check import mask_of
from .mask import Mask
from .nn._with_mask import LayerWithMask
from .policy import TWINS, Policy, matches, rules_of

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, policy: Policy | Mapping[str, Any] | float | None = None) -> Model:
    """Makes the `nn.Linear` and `nn.Conv2d` layers of a model that a policy names masked ones; returns the model.

    In place: each layer stays the object it is and becomes a `MaskedLinear` or `MaskedConv2d`, so whatever refers to it
    goes on doing so, and its parameters, hooks, device, dtype, mode and attributes stay. An optimizer made before
    holds the same parameters; `protect` it if it has momentum. Zeros are written under the mask, the weight of a
    convolution is made contiguous, and all of it is checked before anything changes.

    Only layers whose type is exactly the plain one are converted, as a subclass may compute something else: so neither
    what is masked or gated already, nor `out_proj` of `nn.MultiheadAttention`, whose parent reads its weight and never
    calls it. A name without wildcards that means something else than such a layer is refused. Of
    `nn.MultiheadAttention` nothing is masked (`in_proj_weight` is no layer's), of `nn.TransformerEncoderLayer` the two
    linear layers. That layer's fast path in eval mode reads their weights as well: it is turned off where one of them
    is masked, as are the nested tensors that `nn.TransformerEncoder` makes for it, until `fold`; so convert the model,
    not such a layer's parts. Another parent that reads `weight` sees zeros under the mask, but sends a gradient there,
    which `protect` keeps from the weight.

    Layers that share a weight share one mask. Layers pruned by `torch.nn.utils.prune` keep what is pruned, and
    `weight_orig` is `weight` again; a policy's mask or density (of all weights) takes more away. Pruning of a bias is
    left as it is.

    Args:
        model: any module; a plain layer too.
        policy: a `Policy`; a density for all layers; or a dict of name patterns, the first of which that matches a
            layer has its density, mask, function of name and layer, or None (nothing masked yet). None is `Policy()`.

    Raises:
        TypeError: not a module, not a policy, a layer that is named and cannot be masked, or a weight or mask of a
            dtype that cannot be used.
        ValueError: a mask of another shape than the weight; a density for a weight on meta or with NaN; a layer with a
            parametrization, another reparametrization than pruning, or a `forward` of its own; a pruning mask that is
            not 0 and 1; a weight that is shared with something that the policy leaves alone or treats otherwise.

    Warns:
        UserWarning: nothing matches, or nothing matches a pattern of the dict.
    """
    check_module(model)
    rules = rules_of(policy)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    chosen = _chosen(names, rules)
    masks = _masks(names, chosen)
    used = {id(chosen[layer]) for layer in masks}
    for rule in rules:
        if id(rule) not in used:
            known = [called[0] for module, called in names.items() if type(module) in TWINS]
            masked = sum(isinstance(module, LayerWithMask) for module in names)
            which = f" ({rule.names!r})" if isinstance(policy, Mapping) else ""
            warnings.warn(
                f"policy{which} matches no layer of model ({type(model).__name__}), whose plain layers are "
                f"{known}, and {masked} are masked already",
                UserWarning,
                stacklevel=2,
            )
    for layer, mask in masks.items():
        become_masked(layer, mask)
    set_fast_paths(model)
    return model


def _chosen(names: dict[nn.Module, list[str]], rules: list[Policy]) -> dict[nn.Module, Policy]:
    """The layers to convert, each with the first rule that matches it."""
    unread = {module.out_proj for module in names if isinstance(module, nn.MultiheadAttention)}
    chosen = {}
    for layer, called in names.items():
        kind = parametrize.type_before_parametrizations(layer)
        plain = kind in TWINS and layer not in unread
        for rule in rules:
            if not plain:
                if isinstance(rule.names, tuple) and not set(rule.names).isdisjoint(called):
                    raise TypeError(f"policy names {called[0]!r}, {_why_not(layer, layer in unread)}")
                continue
            if kind not in rule.types or (rule.names is not None and not matches(rule.names, called, layer)):
                continue
            if rule.exclude is not None and matches(rule.exclude, called, layer):
                continue
            if checked_weight(called[0], layer).numel() >= rule.min_weights:
                chosen[layer] = rule
                break
    return chosen


def _why_not(layer: nn.Module, unread: bool) -> str:
    if isinstance(layer, LayerWithMask):
        return "which is masked already: its set_mask changes the mask"
    if unread:
        return f"a {type(layer).__name__} whose parent reads its weight and never calls it, so that no mask would hold"
    return f"a {type(layer).__name__}: only layers whose type is exactly nn.Linear or nn.Conv2d can be masked"


def _masks(names: dict[nn.Module, list[str]], chosen: dict[nn.Module, Policy]) -> dict[nn.Module, Mask]:
    """The mask of each layer: one for all that share a weight. Changes nothing."""
    readers: dict[int, list[nn.Module]] = {}
    for module in names:
        for key in {id(parameter) for parameter in module._parameters.values()}:
            readers.setdefault(key, []).append(module)
    masks: dict[nn.Module, Mask] = {}
    done = set()
    for layer, rule in chosen.items():
        name = names[layer][0]
        weight = checked_weight(name, layer)
        if id(weight) in done:
            continue
        done.add(id(weight))
        group = readers[id(weight)]
        pruned = pruned_mask(name, layer)
        mask = _mask(name, layer, weight, rule, pruned)
        if mask is None:
            continue
        for other in group:
            alike = chosen.get(other)
            if alike is None or alike.density != rule.density or alike.mask is not rule.mask:
                raise ValueError(
                    f"layer {name!r} shares its weight with {names[other][0]!r} ({type(other).__name__}), which the "
                    "policy leaves alone or masks otherwise: treat both alike, or exclude both"
                )
            if pruned_mask(names[other][0], other) != pruned:
                raise ValueError(
                    f"layers {name!r} and {names[other][0]!r} share a weight and must be pruned alike: exclude both, "
                    "or call torch.nn.utils.prune.remove first"
                )
        masks.update((other, mask) for other in group)
    return masks


def _mask(name: str, layer: nn.Module, weight: nn.Parameter, rule: Policy, pruned: Mask | None) -> Mask | None:
    given = rule.mask(name, layer) if callable(rule.mask) else rule.mask
    if callable(rule.mask) and given is None:
        return None
    if rule.density is None and given is None:
        return pruned or Mask.full(weight.shape)
    try:
        mask = _largest(weight, rule.density, pruned) if rule.density is not None else _fitting(given, weight)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    return mask if pruned is None else mask & pruned


def _largest(weight: nn.Parameter, density: float, pruned: Mask | None) -> Mask:
    if weight.is_meta:
        raise ValueError("density needs the values of a weight, got one on meta; give a mask")
    scores = whole(weight.detach()).abs()
    return Mask.topk(scores if pruned is None else torch.where(pruned.dense(), scores, -1), density)


def _fitting(mask: Any, weight: nn.Parameter) -> Mask:
    """What `set_mask` takes, as a `Mask` on the weight's device; what it refuses is refused."""
    if isinstance(mask, Tensor) and mask.is_floating_point():
        raise TypeError(f"mask must be a Mask, bool or 0/1 integers, got a floating tensor {list(mask.shape)}")
    if isinstance(mask, (Mask, Tensor)) and not weight.is_meta:
        mask = mask.to(weight.device)
    checked = mask_of(mask, weight, Mask.from_dense)
    assert isinstance(checked, Mask)
    return checked


def become_masked(layer: Any, mask: Mask) -> None:
    """Makes a plain layer its masked twin; the object stays."""
    twin = TWINS[type(layer)]
    remove_pruning(layer)
    if not layer.weight.is_contiguous():  # kernels read the weight's rows, and would copy it
        layer.weight.data = layer.weight.data.contiguous()
    layer.__class__ = twin  # as torch's parametrizations do: what refers to the layer goes on doing so
    layer._set_up(mask)


__all__ = ["Policy", "convert"]
