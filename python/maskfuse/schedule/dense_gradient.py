"""Gradients of masked layers' weights with nothing masked: what a weight under the mask would get."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import _channel_masks
from ..nn._with_mask import LayerWithMask


class DenseGradients:
    """Adds up dense gradients, of the backward passes of what ran in `recording`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # by name, float32 or float64

    @contextmanager
    def recording(self, layers: Iterable[tuple[str, LayerWithMask]]) -> Iterator[None]:
        """Forward passes in it are recorded; backward may come later. Layers compute what they always do."""
        handles = []
        try:
            for name, layer in layers:
                hook = functools.partial(self._called, name)
                handles.append(layer.register_forward_hook(hook, with_kwargs=True))
            with _eager():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _called(self, name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if output.requires_grad:
            bound = dict(zip(("input", "channels"), args, strict=False)) | kwargs
            input, channels = bound["input"].detach(), bound.get("channels")
            output.register_hook(functools.partial(self._add, name, layer, input, channels))

    @torch.no_grad()
    def _add(self, name: str, layer: Any, input: Tensor, channels: Tensor | None, grad: Tensor) -> None:
        if channels is not None:
            input = _channel_masks.zeroed(input, channels, 2 if len(layer.mask.shape) == 4 else 0)
        dtype = torch.promote_types(grad.dtype, torch.float32)  # sums of half types would have many ties
        with torch.autocast(grad.device.type, enabled=False):
            gradient = weight_gradient(layer, input.to(dtype), grad.to(dtype))
        known = self.sums.get(name)
        self.sums[name] = gradient if known is None else known.add_(gradient)


def weight_gradient(layer: Any, input: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a layer's weight as the plain layer has it, masked nowhere.

    Args:
        layer: masked or compact.
        input: what the layer was given, `[..., in]` or `[batch, in, height, width]`, or without `batch`.
        grad: gradient of what it returned, in the input's dtype.

    Returns:
        Of the weight's shape, in that dtype.
    """
    if len(layer.mask.shape) == 4:
        # A constructor's padding, "same" or not, is kept in this form too.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        images = F.pad(input, layer._reversed_padding_repeated_twice, mode=mode)
        if images.dim() == 3:
            images, grad = images[None], grad[None]
        return torch.nn.grad.conv2d_weight(
            images, layer.mask.shape, grad, layer.stride, 0, layer.dilation, layer.groups
        )
    rows = math.prod(input.shape[:-1])
    return grad.reshape(rows, grad.shape[-1]).T @ input.reshape(rows, input.shape[-1])


def _eager() -> Any:
    """Compiled code does not run hooks that came after it was compiled, so it runs uncompiled here."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
