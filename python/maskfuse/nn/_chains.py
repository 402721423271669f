"""Chains of masked layers that compute only the channels which the next one reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional.channel_gather import channel_gather
from ..functional.masked_conv2d import checked_masked_conv2d
from ..functional.masked_linear import checked_masked_linear
from ..mask import Mask
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear

# What treats each element alone, so that it does not matter which channels are there.
_ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Dropout,
)


# What treats each channel of an image alone.
_CHANNELWISE = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d)


@dataclass(frozen=True)
class ChainedLayer:
    """A masked layer on some channels, and what lies between it and the next one of its chain."""

    layer: Any
    mask: Mask  # of the weights that are left
    inputs: Tensor | None  # int64: the input channels that are there; None: all
    outputs: Tensor | None  # int64: the output channels that are computed; None: all
    absent: Tensor | None  # int64: those that are not
    between: list[nn.Module]

    def product(self, x: Tensor) -> Tensor:
        layer, weight, bias = self.layer, self.layer.weight, self.layer.bias
        if self.inputs is not None:
            weight = channel_gather(weight, self.inputs, self.outputs)
        elif self.outputs is not None:
            weight = weight.index_select(0, self.outputs)
        if self.outputs is not None and bias is not None:
            bias = bias.index_select(0, self.outputs)
        if isinstance(layer, MaskedLinear):
            return checked_masked_linear(x, weight, self.mask, bias)
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = (0, 0)
        return checked_masked_conv2d(x, weight, self.mask, bias, layer.stride, padding, layer.dilation, 1)


def hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _maskable(module: nn.Module) -> bool:
    if type(module) is MaskedConv2d:
        return module.groups == 1 and not hooked(module)
    return type(module) is MaskedLinear and not hooked(module)


def _updates(module: nn.Module) -> bool:
    """Whether a norm changes its running statistics."""
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.training and module.running_mean is not None


def _passes(module: nn.Module, layer: Any, directly: bool) -> bool:
    """Whether a module behind the layer may see only some channels."""
    image = isinstance(layer, MaskedConv2d)
    if type(module) in _ELEMENTWISE or (image and type(module) in _CHANNELWISE):
        return True
    if type(module) is (nn.BatchNorm2d if image else nn.BatchNorm1d):
        same = bool(module.num_features == layer.weight.shape[0])
        return same and not hooked(module) and (directly or not _updates(module))
    return False


@torch.inference_mode(False)  # what is made here outlives the call
@torch.no_grad()
def chains_of(modules: list[nn.Module]) -> list[nn.Module | list[ChainedLayer]]:
    plan: list[nn.Module | list[ChainedLayer]] = []
    i = 0
    while i < len(modules):
        chain, last = _chain_from(modules, i)
        plan.append(chain or modules[i])
        i = last + 1
    return plan


def _chain_from(modules: list[nn.Module], first: int) -> tuple[list[ChainedLayer], int]:
    """The masked layers that go together from module `first` on, and where the last one stands; [] for a single one."""
    chain: list[ChainedLayer] = []
    given, i = None, first
    while True:
        layer: Any = modules[i]
        link = _link(modules, i)
        if link is None:
            break
        following, wanted = link
        chain.append(_part(layer, given, wanted, modules[i + 1 : following]))
        given, i = wanted, following
    if chain:
        chain.append(_part(layer, given, None, []))
    return chain, i


def _link(modules: list[nn.Module], i: int) -> tuple[int, Tensor] | None:
    """Where the masked layer stands that reads only some channels of module `i`, and which; None where none does."""
    layer: Any = modules[i]
    if not _maskable(layer):
        return None
    end = i + 1
    while end < len(modules) and _passes(modules[end], layer, end == i + 1):
        end += 1
    if end == len(modules) or type(modules[end]) is not type(layer) or not _maskable(modules[end]):
        return None
    wanted = _wanted(layer, modules[end], modules[i + 1 : end])
    return None if wanted is None else (end, wanted)


def _wanted(layer: Any, following: Any, between: list[nn.Module]) -> Tensor | None:
    """The output channels that must be computed; None where that is all of them, or none."""
    inputs = following.mask.dense().any(0)
    wanted = inputs.flatten(1).any(1) if inputs.dim() > 1 else inputs
    if len(wanted) != layer.weight.shape[0]:
        return None  # the layers do not fit; the call will say so
    if any(_updates(module) for module in between):
        wanted = wanted | layer.mask.dense().flatten(1).any(1)
    channels = wanted.nonzero().squeeze(1)
    return channels if 0 < len(channels) < len(wanted) else None


def _part(layer: Any, inputs: Tensor | None, outputs: Tensor | None, between: list[nn.Module]) -> ChainedLayer:
    dense = layer.mask.dense()
    absent = None
    if outputs is not None:
        everything = torch.ones(len(dense), dtype=torch.bool, device=dense.device)
        absent = everything.index_fill(0, outputs, False).nonzero().squeeze(1)
        dense = dense.index_select(0, outputs)
    if inputs is not None:
        dense = dense.index_select(1, inputs)
    mask = Mask.from_dense(dense)
    _ = mask.structure, mask.plan
    return ChainedLayer(layer, mask, inputs, outputs, absent, between)


def run_chain(chain: list[ChainedLayer], x: Tensor) -> Tensor:
    normed = any(isinstance(module, nn.BatchNorm1d) for part in chain for module in part.between)
    if not isinstance(x, Tensor) or x.is_meta or x.numel() == 0 or (normed and x.dim() != 2):
        for part in chain:
            x = part.layer(x)
            for module in part.between:
                x = module(x)
        return x
    for part in chain:
        x = part.product(x)
        for module in part.between:
            x = _norm(module, x, part) if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) else module(x)
    return x


def _norm(norm: Any, x: Tensor, part: ChainedLayer) -> Tensor:
    """The norm on the channels that are there, with what it would do to the statistics of the others."""
    present, absent = part.outputs, part.absent
    assert present is not None and absent is not None
    norm._check_input_dim(x)
    weight = None if norm.weight is None else norm.weight.index_select(0, present)
    bias = None if norm.bias is None else norm.bias.index_select(0, present)
    if norm.running_mean is None or norm.running_var is None:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, norm.eps)
    mean, var = norm.running_mean.index_select(0, present), norm.running_var.index_select(0, present)
    if not norm.training:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, norm.eps)
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if share is None else share
    output = F.batch_norm(x, mean, var, weight, bias, True, share or 0.0, norm.eps)
    with torch.no_grad():
        # A channel without weights is its bias everywhere: that is its mean, and its variance is 0.
        constant = part.layer.bias
        target = 0.0 if constant is None else constant.index_select(0, absent).to(norm.running_mean.dtype)
        kept = 1.0 - (share or 0.0)
        others = norm.running_mean.index_select(0, absent) * kept + (share or 0.0) * target
        norm.running_mean.index_copy_(0, present, mean).index_copy_(0, absent, others)
        others = norm.running_var.index_select(0, absent) * kept
        norm.running_var.index_copy_(0, present, var).index_copy_(0, absent, others)
    return output
