"""`CompactLinear`: a linear layer that has its active weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.compact_linear import checked_compact_linear
from ..mask import Mask
from ._compact import CompactLayer
from .masked_linear import MaskedLinear


class CompactLinear(CompactLayer):
    """`MaskedLinear` whose parameter `values` `[active]` has the active weights alone, row after row of the mask.

    Weight, gradient and optimizer state shrink with the density. A pass makes the weight in full and drops it, a layer
    at a time; nothing of its size is kept for backward. So it takes the time of `MaskedLinear` and a copy of the
    weight, in the forward pass and for either gradient. Where every weight is active nothing is copied. No optimizer
    moves a masked weight, as there is none.

    `state_dict` has `values`, `bias` and the mask's bits; a state with another mask loads, and so does a plain or
    masked layer's, of which the active weights are taken. `maskfuse.dense_state_dict` gives what a plain layer loads.
    An optimizer's state does not follow what is loaded: load its own too. `set_mask` changes the mask.

    For inference `pack()` keeps the active weights in the order in which kernels walk the mask: on the CPU calls that
    ask for no gradient make no weight in full then, where a kernel runs that reads what was packed and nothing else.

    The layer is no `nn.Linear`, and `weight` is computed when asked for. `torch.compile` compiles anew where the number
    of active weights changes, as parameters have static shapes there, unless
    `torch._dynamo.config.force_parameter_static_shapes` is False.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`, whose initial values these are.
        mask: `Mask`, bool or 0/1 integer tensor `[out_features, in_features]`; None masks nothing.

    Raises:
        TypeError: `mask` is floating, or neither a `Mask` nor a tensor.
        ValueError: `mask` has another shape than the weight, or integers other than 0 and 1.
        RuntimeError: sizes or options that `nn.Linear` refuses.
    """

    masked = MaskedLinear
    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        mask: Mask | Tensor | None = None,
    ) -> None:
        super().__init__()
        self._set_up(nn.Linear(in_features, out_features, bias, device, dtype), mask)

    def _pack(self, mask: Mask) -> list[Tensor]:
        return torch.ops.maskfuse.masked_linear_pack(self.weight.detach(), mask.bits, mask.plan)

    def forward(self, input: Tensor, channels: Tensor | None = None) -> Tensor:
        """`input` `[..., in_features]` -> `[..., out_features]`; see `maskfuse.functional.compact_linear`.

        Args:
            input: `[..., in_features]`, the dtype and device of the values.
            channels: bool of the input's shape or `[in_features]`: input features that take part, or None for all.

        Returns:
            `[..., out_features]`, the input's dtype.

        Raises:
            TypeError: a dtype that no kernel takes, or another one than that of the values.
            ValueError: a shape or device that does not fit.
            RuntimeError: the backend asked for cannot run on the input's device.
        """
        values, mask = self.values, self._mask
        return checked_compact_linear(input, values, mask, self.bias, self._packed_for(values, mask), channels)
