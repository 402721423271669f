"""What a model's layers are called with: one run on example inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._example_inputs import arguments
from ..nn._with_mask import LayerWithMask
from .rows import Call, products_of


def calls_of(model: nn.Module, layers: Iterable[nn.Module], example_inputs: Any) -> dict[nn.Module, list[Call]]:
    """The calls of each layer in a forward pass in eval mode, without gradients. Modes are what they were afterwards.

    Raises:
        whatever the model raises for these inputs.
    """
    args, kwargs = arguments(example_inputs)
    calls: dict[nn.Module, list[Call]] = {layer: [] for layer in layers}

    def seen(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        x = inputs[0] if inputs else keywords.get("input")
        if isinstance(x, Tensor) and isinstance(output, Tensor):
            calls[layer].append(_call(layer, x, output))

    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_hook(seen, with_kwargs=True) for layer in calls]
    try:
        for module in modes:  # not by eval(): train(), which would undo it, unpacks masked layers
            module.training = False
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return calls


def _call(layer: Any, x: Tensor, output: Tensor) -> Call:
    shape = layer.mask.shape if isinstance(layer, LayerWithMask) else layer.weight.shape
    if len(shape) == 2:
        products = products_of(shape, output)
        return Call(batch=products, products=products)
    out = output if output.dim() == 4 else output[None]
    images = x if x.dim() == 4 else x[None]
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    height, width = images.shape[2:]
    return Call(len(images), (height, width), last, products_of(shape, out.movedim(1, 0)[: shape[0]]))
