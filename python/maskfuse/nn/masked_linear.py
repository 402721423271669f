"""`MaskedLinear`: an `nn.Linear` part of whose weight is switched off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..backends import choose
from ..functional.masked_linear import checked_masked_linear
from ..mask import Mask
from ._masked import MaskedLayer, is_recorded, takes_short_way


class MaskedLinear(MaskedLayer, nn.Linear):
    """`nn.Linear` with a binary mask on its weight.

    `weight` stays a dense parameter `[out_features, in_features]`. Under the mask it is zero, in value and in
    gradient, unless `set_mask(mask, retain=True)` keeps the values there; they contribute nothing either way.

    The mask is no buffer: it is saved in `state_dict` as `mask_bits` and follows the layer's device, and nothing
    that averages, broadcasts or casts buffers touches it. A plain layer's `state_dict` loads into this one and
    keeps the current mask; a masked layer's brings its mask, and the values under it where they were retained.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        mask: `Mask`, bool or 0/1 integer tensor `[out_features, in_features]`; None masks nothing.

    Raises:
        TypeError: `mask` is floating, or neither a `Mask` nor a tensor.
        ValueError: `mask` has another shape than the weight, or integers other than 0 and 1.
        RuntimeError: sizes or options that `nn.Linear` refuses.
    """

    plain = nn.Linear
    packs_on = ("cpu", "cuda")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        mask: Mask | Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(mask)

    @staticmethod
    def _arguments(layer: Any) -> dict[str, Any]:
        return {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
        }

    def _pack(self, mask: Mask) -> list[Tensor]:
        pack = choose("masked_linear", self.weight.device).ops.get("masked_linear_pack")
        return pack(self.weight.detach(), mask) if pack is not None else []

    def forward(self, input: Tensor, channels: Tensor | None = None) -> Tensor:
        """`input` `[..., in_features]` -> `[..., out_features]`; see `maskfuse.masked_linear`.

        Args:
            input: `[..., in_features]`, the weight's dtype and device.
            channels: bool of the input's shape or `[in_features]`: input features that take part, or None for all.

        Returns:
            `[..., out_features]`, the input's dtype.

        Raises:
            TypeError: a dtype that no kernel takes, or another one than the weight's.
            ValueError: a shape or device that does not fit.
            RuntimeError: the backend asked for cannot run on the input's device.
        """
        weight, bias, mask = self.weight, self.bias, self._mask
        packed = self._packed_for(weight, mask)
        if channels is None and takes_short_way(input, weight, bias, mask):
            plan = [*mask.plan, *packed] if packed else mask.plan
            if mask.known_full and ops.LIBRARY_GEMM:
                return super().forward(input)
            try:
                if is_recorded(input, weight, bias):
                    return ops.masked_linear.record(input, weight, mask.bits, plan, bias)
                return ops.masked_linear_unrecorded(input, weight, mask.bits, plan, bias)
            except RuntimeError:
                pass
        return checked_masked_linear(input, weight, mask, bias, packed, channels)
