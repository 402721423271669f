"""`CompactConv2d`: a convolution that has its active weights alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional.compact_conv2d import compact_conv2d
from ..mask import Mask
from ._compact import CompactLayer
from ._padding import padded
from .masked_conv2d import MaskedConv2d


class CompactConv2d(CompactLayer):
    """`MaskedConv2d` whose parameter `values` `[active]` has the active weights alone, row after row of the mask.

    Memory, state, time and `set_mask` are as in `CompactLinear`; `pack` has nothing to keep. The output has the memory
    format of the input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in `nn.Conv2d`, whose initial values these are.
        mask: `Mask`, bool or 0/1 integer tensor `[out_channels, in_channels / groups, kernel_height, kernel_width]`;
            None masks nothing.

    Raises:
        TypeError: `mask` is floating, or neither a `Mask` nor a tensor.
        ValueError: `mask` has another shape than the weight, or integers other than 0 and 1; options that `nn.Conv2d`
            refuses.
        RuntimeError: sizes that `nn.Conv2d` refuses.
    """

    masked = MaskedConv2d
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

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
        super().__init__()
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._set_up(plain, mask)

    def _pack(self, mask: Mask) -> list[Tensor]:
        return []  # kernels read the weight too

    def forward(self, input: Tensor, channels: Tensor | None = None) -> Tensor:
        """`input` `[batch, in_channels, height, width]`, or without `batch`.

        See `maskfuse.functional.compact_conv2d`.

        Args:
            input: `[batch, in_channels, height, width]`, or without `batch`, the dtype and device of the values.
            channels: bool `[batch, in_channels]` or `[in_channels]`: input channels that take part, or None for all.

        Returns:
            `[batch, out_channels, out_height, out_width]`, or without `batch`, the input's dtype.

        Raises:
            TypeError: a dtype that no kernel takes, or another one than that of the values.
            ValueError: a shape or device that does not fit.
            RuntimeError: the backend asked for cannot run on the input's device.
        """
        input, padding = padded(self, input)
        return compact_conv2d(
            input, self.values, self._mask, self.bias, self.stride, padding, self.dilation, self.groups, channels
        )
