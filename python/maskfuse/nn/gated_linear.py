"""`GatedLinear`: an `nn.Linear` whose weight is scaled by learned gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.gated_linear import gated_linear
from ..functional.masked_linear import masked_linear
from ._gated import GatedLayer
from .masked_linear import MaskedLinear


class GatedLinear(GatedLayer, nn.Linear):
    """`nn.Linear` with a gate on each weight, made of learned scores: `input @ (weight * gate).T + bias`.

    `weight` is a dense parameter `[out_features, in_features]`, and `scores`, behind `bias`, another one like it. What
    a gate is, with `T` for `temperature`:

    - `"sigmoid"`: `sigmoid(scores / T)` (Savarese et al. 2020, "Winning the Lottery with Continuous Sparsification",
      arXiv:1912.04427).
      As `T` falls from epoch to epoch, gates go to 0 and 1.
    - `"straight_through"`: 1 where the score is positive, else 0, with the gradient of `sigmoid(scores / T)` (Bengio et
      al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432). Weights behind
      closed gates get a gradient of 0, their scores do not.
    - `"hard_concrete"`: in training `clamp(1.2 * s - 0.1, 0, 1)` with `s = sigmoid((log(u) - log(1 - u) + scores) / T)`
      and `u` uniform on 0..1, drawn for each weight in each call from torch's generator of the device; in eval mode
      `clamp(1.2 * sigmoid(scores) - 0.1, 0, 1)`, whatever `T` (Louizos et al. 2018, "Learning Sparse Neural Networks
      through L0 Regularization", arXiv:1712.01312, equations 10, 11 and 13).

    Add `l1_penalty()` times a coefficient to the loss so that gates close; then `harden()` gives the masked layer.
    Weight decay on `scores` pulls gates to a half: give them a group without it. The sigmoid is taken while kernels
    read the weight, as `maskfuse.gated_linear` says; the other kinds' gates are tensors of the weight's size. What
    reads `weight` itself, as the fast path of `nn.TransformerEncoderLayer` in eval mode does, sees it without gates.

    A plain layer's `state_dict` loads into this one, and keeps scores and temperature; its own has `scores` and
    `temperature` beside the plain layer's entries. Temperature is no buffer: nothing averages or casts it.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        kind: "sigmoid", "straight_through" or "hard_concrete".
        temperature: positive; None for 1, or 2/3 for hard-concrete gates.
        initial_score: what all scores start as; 2 is a gate of 0.88, and at 0 straight-through gates are closed.

    Raises:
        TypeError: `temperature` or `initial_score` is no number.
        ValueError: another kind, a temperature that is not positive and finite, or NaN.
        RuntimeError: sizes or options that `nn.Linear` refuses.
    """

    hardened = MaskedLinear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kind: str = "sigmoid",
        temperature: float | None = None,
        initial_score: float = 2.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(kind, temperature, initial_score)

    def forward(self, input: Tensor) -> Tensor:
        """`input` `[..., in_features]` -> `[..., out_features]`; see `maskfuse.gated_linear`.

        Args:
            input: `[..., in_features]`, the weight's dtype and device.

        Returns:
            `[..., out_features]`, the input's dtype.

        Raises:
            TypeError: a dtype that no kernel takes, or another one than the weight's.
            ValueError: a shape or device that does not fit.
            RuntimeError: the backend asked for cannot run on the input's device.
        """
        if self.kind == "sigmoid":
            return gated_linear(input, self.weight, self._scaled(), self.bias)
        return masked_linear(input, self.weight, self.gate(), self.bias)
