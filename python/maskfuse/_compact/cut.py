"""Takes the channels that were decided on out of a model's parameters, buffers and layers, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._memory_format import memory_format_of
from ..nn.freeze import freeze, frozen_mask
from .decide import Decision, alone
from .labels import Dim, Reader
from .products import by_groups
from .trace import Trace


@torch.no_grad()
def cut(model: nn.Module, trace: Trace, decision: Decision) -> dict[int, Tensor]:
    """Cuts, and returns what is left of each masked weight's mask, by the id of its parameter now."""
    grouped: dict[int, Reader] = {id(r.weight): r for r in trace.readers if r.groups > 1 and r.weight is not None}
    _fold_constants(trace, decision)
    new: dict[int, Tensor] = {}
    masks: dict[int, Tensor] = {}
    for key, (t, dims) in trace.parameters.items():
        reader = grouped.get(key)
        values = _kept(t, dims, reader, decision)
        if values.shape != t.shape:
            new[key] = _in_place_of(t, values)
            frozen, parameter = frozen_mask(t), new[key]
            if frozen is not None and isinstance(parameter, nn.Parameter):
                freeze(parameter, _kept(frozen.dense(), dims, reader, decision))
        if key in trace.masks:
            masks[id(new.get(key, t))] = _kept(trace.masks[key], dims, reader, decision)
    for owner in model.modules():
        for tensors in (owner._parameters, owner._buffers):
            changed = {name: new[id(t)] for name, t in tensors.items() if id(t) in new}
            tensors.update(changed)  # type: ignore[arg-type]
    for reader in grouped.values():
        convolution: Any = reader.module
        if convolution is not None:
            convolution.groups = int(_groups_left(reader, decision).sum())
    for norm in trace.together:
        gone = decision.of(norm.channels, len(norm.channels))
        module: Any = norm.module
        module.num_groups = int((~gone).view(norm.groups, -1).any(1).sum())
        module.num_channels = int((~gone).sum())
    for owner in model.modules():
        _resize(owner)
    return masks


def _fold_constants(trace: Trace, decision: Decision) -> None:
    """Puts constant channels that go into the layers that read them."""
    for i, reader in enumerate(trace.readers):
        gone = decision.of(reader.inputs, len(reader.inputs)) & ~reader.constants.isnan()
        values = torch.where(gone, reader.constants, 0)
        if reader.module is None or reader.weight is None or not bool(values.any()):
            continue
        if i in decision.carriers:
            _into_channel(trace, reader, reader.weight, values, decision.carriers[i])
        elif not reader.padded and alone(trace, reader):
            _into_bias(reader, reader.module, reader.weight, values, decision)


def _into_channel(trace: Trace, reader: Reader, weight: Tensor, values: Tensor, carrier: int) -> None:
    """Adds their weights to those of a constant that stays, as many times as they are of it."""
    shares = (values / reader.constants[carrier]).to(weight.device)
    added = (weight.double() * shares.view(-1, *[1] * (weight.dim() - 2))).sum(1)
    weight[:, carrier] = (weight[:, carrier].double() + added).to(weight.dtype)
    mask = trace.masks.get(id(weight))
    if mask is not None:
        mask[:, carrier] |= mask[:, values != 0].any(1)


def _into_bias(reader: Reader, module: Any, weight: Tensor, values: Tensor, decision: Decision) -> None:
    """Adds what they contribute to the bias; a layer without one gets one."""
    taps = weight.double().cpu().flatten(1).view(*weight.shape[:2], -1).sum(2)
    added = (taps * by_groups(values, reader.groups, len(taps))).sum(1)
    if module.bias is not None:
        module.bias.copy_(module.bias.double() + added.to(module.bias.device))
    elif bool(added.any()):
        kept = added[~decision.of(reader.outputs, len(added))].to(weight)
        module.bias = nn.Parameter(kept, requires_grad=weight.requires_grad)


def _kept(t: Tensor, dims: tuple[Dim, ...], reader: Reader | None, decision: Decision) -> Tensor:
    if reader is not None:
        return _kept_in_groups(t, reader, decision)
    for d, dim in enumerate(dims):
        gone = decision.of(dim, t.shape[d])
        if bool(gone.any()):
            t = t.index_select(d, (~gone).nonzero().squeeze(1).to(t.device))
    return t


def _groups_left(reader: Reader, decision: Decision) -> Tensor:
    """Bool `[groups]` of a convolution: those that have channels left."""
    gone = decision.of(reader.outputs, len(reader.outputs))
    return ~gone.view(reader.groups, -1).all(1)


def _kept_in_groups(t: Tensor, reader: Reader, decision: Decision) -> Tensor:
    """Of a weight `[out, in / groups, ...]`: each group keeps as many inputs, but not the same ones."""
    rows = (~decision.of(reader.outputs, len(reader.outputs))).nonzero().squeeze(1)
    stay = ~decision.of(reader.inputs, len(reader.inputs)).view(reader.groups, -1)
    group = rows // (len(reader.outputs) // reader.groups)
    columns = torch.stack([stay[g].nonzero().squeeze(1) for g in group.tolist()])
    return t[rows[:, None].to(t.device), columns.to(t.device)]


def _in_place_of(t: Tensor, values: Tensor) -> Tensor:
    values = values.contiguous(memory_format=memory_format_of(t))
    return nn.Parameter(values, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else values


def _resize(module: Any) -> None:
    """Makes a layer's sizes those of its parameters."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and weight is not None:
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvTransposeNd) and weight is not None:
        module.in_channels, module.out_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        of = weight if weight is not None else module.running_mean
        module.num_features = module.num_features if of is None else len(of)
    elif isinstance(module, nn.Embedding) and weight is not None:
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.PReLU) and weight is not None:
        module.num_parameters = len(weight)
