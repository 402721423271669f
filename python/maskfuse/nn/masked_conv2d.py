"""`MaskedConv2d`: an `nn.Conv2d` part of whose weight is switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..functional.masked_conv2d import checked_masked_conv2d
from ..mask import Mask
from ._masked import MaskedLayer, is_recorded, takes_short_way
from ._padding import padded

if TYPE_CHECKING:
    from typing_extensions import Self


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """`nn.Conv2d` with a binary mask on its weight.

    `weight` stays a dense parameter `[out_channels, in_channels / groups, kernel_height, kernel_width]`. Under the mask
    it is zero, in value and in gradient, unless `set_mask(mask, retain=True)` keeps the values there; they contribute
    nothing either way. The mask is saved and moved as `MaskedLinear`'s is. The output has the memory format of the
    input; the weight itself stays contiguous when the layer is moved to channels_last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in `nn.Conv2d`.
        mask: `Mask`, bool or 0/1 integer tensor of the weight's shape; None masks nothing.

    Raises:
        TypeError: `mask` is floating, or neither a `Mask` nor a tensor.
        ValueError: `mask` has another shape than the weight, or integers other than 0 and 1; options that `nn.Conv2d`
            refuses.
        RuntimeError: sizes that `nn.Conv2d` refuses.
    """

    plain = nn.Conv2d

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
        mask: Mask | Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._set_up(mask)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # `.to(memory_format=channels_last)` is for activations: kernels read the weight's rows, and would copy it.
        if not self.weight.is_contiguous():
            self.weight.data = self.weight.data.contiguous()
        return self

    @staticmethod
    def _arguments(layer: Any) -> dict[str, Any]:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        rest = {"bias": layer.bias is not None, "padding_mode": layer.padding_mode}
        return {name: getattr(layer, name) for name in names} | rest

    def _pack(self, mask: Mask) -> list[Tensor]:
        if self.groups != 1:
            return []
        return torch.ops.maskfuse.masked_conv2d_pack(self.weight.detach(), mask.bits, mask.plan)

    def forward(self, input: Tensor, channels: Tensor | None = None) -> Tensor:
        """`input` `[batch, in_channels, height, width]`, or without `batch`; see `maskfuse.masked_conv2d`.

        Args:
            input: `[batch, in_channels, height, width]`, or without `batch`, the weight's dtype and device.
            channels: bool `[batch, in_channels]` or `[in_channels]`: input channels that take part, or None for all.

        Returns:
            `[batch, out_channels, out_height, out_width]`, or without `batch`, the input's dtype.

        Raises:
            TypeError: a dtype that no kernel takes, or another one than the weight's.
            ValueError: a shape or device that does not fit.
            RuntimeError: the backend asked for cannot run on the input's device.
        """
        return self._conv_forward(input, self.weight, self.bias, channels)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, channels: Tensor | None = None
    ) -> Tensor:
        input, padding = padded(self, input)
        mask = self._mask
        packed = self._packed_for(weight, mask)
        usual = channels is None and not isinstance(padding, str) and input.dim() == 4 and weight.numel() > 0
        if usual and takes_short_way(input, weight, bias, mask):
            plan = mask.plan if self.groups == 1 else []  # which is what tells that a mask is full
            if mask.known_full:
                return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
            operands = input, weight, mask.bits, [*plan, *packed], bias
            try:
                if is_recorded(input, weight, bias):
                    return ops.masked_conv2d.record(*operands, self.stride, padding, self.dilation, self.groups)
                return ops.masked_conv2d_unrecorded(*operands, self.stride, padding, self.dilation, self.groups)
            except RuntimeError:
                pass
        return checked_masked_conv2d(
            input, weight, mask, bias, self.stride, padding, self.dilation, self.groups, packed, channels
        )
