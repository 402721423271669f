"""`GatedConv2d`: an `nn.Conv2d` whose weight is scaled by learned gates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..functional.gated_conv2d import gated_conv2d
from ..functional.masked_conv2d import masked_conv2d
from ._gated import GatedLayer
from ._padding import padded
from .masked_conv2d import MaskedConv2d


class GatedConv2d(GatedLayer, nn.Conv2d):
    """`nn.Conv2d` with a gate on each weight, made of learned scores: the convolution with `weight * gate`.

    `weight` is a dense parameter `[out_channels, in_channels / groups, kernel_height, kernel_width]`, and `scores`,
    behind `bias`, another one like it, of the same dtype. Kinds of gates, with their sources, penalty, hardening and
    state are `GatedLinear`'s. The output has the memory format of the input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in `nn.Conv2d`.
        kind: "sigmoid", "straight_through" or "hard_concrete".
        temperature: positive; None for 1, or 2/3 for hard-concrete gates.
        initial_score: what all scores start as; 2 is a gate of 0.88, and at 0 straight-through gates are closed.

    Returns, from a call:
        `[batch, out_channels, out_height, out_width]` of `[batch, in_channels, height, width]`, or both without
        `batch`, in the input's dtype, which is the weight's.

    Raises:
        TypeError: `temperature` or `initial_score` is no number.
        ValueError: another kind, a temperature that is not positive and finite, or NaN; options that
            `nn.Conv2d` refuses.
        RuntimeError: sizes that `nn.Conv2d` refuses.
    """

    hardened = MaskedConv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kind: str = "sigmoid",
        temperature: float | None = None,
        initial_score: float = 2.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._set_up(kind, temperature, initial_score)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        if self.kind == "sigmoid":
            scores = self._scaled()
            return gated_conv2d(input, weight, scores, bias, self.stride, padding, self.dilation, self.groups)
        return masked_conv2d(input, weight, self.gate(), bias, self.stride, padding, self.dilation, self.groups)
