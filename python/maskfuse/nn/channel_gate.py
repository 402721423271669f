"""`ChannelGate`: channels of an activation switched on and off, by a fixed mask or by what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import describe
from ..functional import _channels, _check
from ..functional._channel_statistic import STATISTICS, channel_statistic, keep_channels, straight_through
from ..functional.channel_gather import channel_gather
from ..functional.channel_select import channel_select
from ._numbers import number, positive

if TYPE_CHECKING:
    from typing_extensions import Self

_KEY = "mask"


class GatedChannels(NamedTuple):
    """The active channels of each sample; `channel_scatter(values, channels, C)` puts them back among zeros.

    Attributes:
        values: `[N, K, ...]`, the input's dtype, in rising order of the channels, zeros past a sample's count.
        channels: int64 `[N, K]`, where they are from; past a sample's count, some of its inactive channels.
        counts: int64 `[N]`, how many of them are active.
    """

    values: Tensor
    channels: Tensor
    counts: Tensor


class ChannelGate(nn.Module):
    """Keeps some channels of an activation `[N, C, ...]` and writes exact zeros into the others, or leaves them out.

    Which channels are active is said by one of three:

    - `mask`: the same ones always. It is no parameter and no buffer, so nothing averages, casts or broadcasts it; it is
      saved in `state_dict` as `mask` and follows the module's device. A missing entry keeps the current mask.
    - `k`: in each sample the `k` channels with the largest statistic; equal ones by index.
    - `threshold`: in each sample the channels whose statistic is greater.

    The statistic is the mean, or the mean absolute value, over all dimensions behind the channels, summed in float32
    for half types; for `[N, C]` it is the value itself; without elements it is 0. A channel whose statistic is NaN is
    never active, so a sample may have fewer than `k`. What inactive channels hold, NaN too, does not reach the output.

    The choice is a constant for the backward pass: active channels get their gradient, inactive ones exactly 0. With
    `straight_through` the gradient also reaches the statistic, as if each channel had been multiplied by
    `sigmoid((statistic - threshold) / temperature)`, whose value is replaced by 1 or 0 (Bengio et al. 2013, "Estimating
    or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432). For top-k the threshold is the k-th largest
    statistic of the sample, as a constant. A statistic that is not finite gets no gradient; with `compact`, nor do
    inactive channels.

    Gates that select by what channels hold: Hua et al. 2019, "Channel Gating Neural Networks", arXiv:1805.12549; Gao et
    al. 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression", arXiv:1810.05331. To skip the work of
    inactive channels in the layer behind, give it the mask instead: `conv(x, channels=gate.active(x))`.

    Args:
        mask: bool `[C]`.
        k: active channels of a sample, 0..C.
        threshold: what the statistic of an active channel is above.
        statistic: "mean_abs" or "mean".
        straight_through: let the gradient reach the statistic; not with a fixed mask.
        temperature: of the sigmoid, positive; smaller is steeper.
        compact: return the active channels alone.
        max_channels: with `threshold` and `compact`: how many channels the result has, at most (and at most C), so that
            its shape does not depend on values; active channels past it are left out. None for the largest count.

    Returns, from a call on `[N, C, ...]`:
        The input's shape, dtype and memory format. With `compact`: for a fixed mask `[N, K, ...]`, else
        `GatedChannels`: values `[N, K, ...]`, channels `[N, K]` and counts `[N]`, with K = `k` for top-k.

    Raises:
        TypeError: arguments of other types; an input that is no tensor or, but for a fixed mask, not floating.
        ValueError: not exactly one of `mask`, `k` and `threshold`; values out of range; an input that does not fit.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        *,
        k: int | None = None,
        threshold: float | None = None,
        statistic: str = "mean_abs",
        straight_through: bool = False,
        temperature: float = 1.0,
        compact: bool = False,
        max_channels: int | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (mask, k, threshold)) != 1:
            raise ValueError("exactly one of mask, k and threshold must be given")
        if k is not None:
            _channels.check_size(k, "k")
        if threshold is not None:
            threshold = number(threshold, "threshold")
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
        temperature = positive(temperature, "temperature")
        if straight_through and mask is not None:
            raise ValueError("straight_through needs a statistic, which a fixed mask does not have")
        if max_channels is not None:
            _channels.check_size(max_channels, "max_channels")
            if threshold is None or not compact:
                raise ValueError("max_channels goes with threshold and compact=True")
        self.k = k
        self.threshold = threshold
        self.statistic = statistic
        self.straight_through = bool(straight_through)
        self.temperature = temperature
        self.compact = bool(compact)
        self.max_channels = max_channels
        self._mask: Tensor | None = None
        self._channels: Tensor | None = None  # where the mask is true
        if mask is not None:
            self.set_mask(mask)

    @property
    def mask(self) -> Tensor | None:
        """The fixed mask, bool `[C]`, or None; change it with `set_mask`."""
        return self._mask

    @property
    def channels(self) -> Tensor | None:
        """The channels that the fixed mask keeps, int64 `[K]`, or None."""
        return self._channels

    def set_mask(self, mask: Tensor) -> None:
        """Replaces the fixed mask by a copy of another one, which may have another length.

        Args:
            mask: bool `[C]`.

        Raises:
            TypeError: no bool tensor.
            ValueError: not one dimension, or the gate has no fixed mask.
        """
        if self.k is not None or self.threshold is not None:
            raise ValueError("this gate chooses its channels by their statistic; it has no mask to set")
        _check_mask(mask)
        with torch.inference_mode(False):  # autograd could not save it
            self._mask = mask.detach().clone()
            self._channels = self._mask.nonzero().squeeze(1)

    def active(self, input: Tensor) -> Tensor:
        """Which channels a call on this input keeps: bool `[C]` for a fixed mask, else bool `[N, C]`; a constant.

        Args:
            input: `[N, C, ...]`, float32, float64, bfloat16 or float16; with a fixed mask any dtype.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: fewer than two dimensions, another number of channels than the mask has, fewer than `k`, or a
                mask on another device than the input.
        """
        if self._mask is not None:
            return self._fixed(input)[0]
        self._check(input)
        with torch.no_grad():
            return self._choose(channel_statistic(input, self.statistic))[0]

    def forward(self, input: Tensor) -> Tensor | GatedChannels:
        """`[N, C, ...]` to the same shape, or to the active channels alone.

        Args:
            input: `[N, C, ...]`, float32, float64, bfloat16 or float16; with a fixed mask any dtype.

        Returns:
            The input's shape, dtype and memory format, or with `compact` what the class says.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: fewer than two dimensions, another number of channels than the mask has, fewer than `k`, or a
                mask on another device than the input.
        """
        if self._mask is not None:
            mask, channels = self._fixed(input)
            return channel_gather(input, channels) if self.compact else keep_channels(input, mask)
        self._check(input)
        learns = self.straight_through and torch.is_grad_enabled()
        statistic = channel_statistic(input if learns else input.detach(), self.statistic)
        active, level = self._choose(statistic.detach())
        gate = None
        if learns:
            margin = (statistic - level) / self.temperature
            gate = torch.sigmoid(torch.where(margin.isfinite(), margin, torch.zeros_like(margin)))
        if not self.compact:
            return keep_channels(input, active) if gate is None else straight_through(input, gate, active)
        most = self.k if self.k is not None else self.max_channels
        if most is not None:
            most = min(most, input.shape[1])
        values, counts = channel_select(input, active, most)
        if gate is not None:
            values = straight_through(values, channel_select(gate, active, values.shape[1])[0], None)
        channels = _channels.active_first(active)[:, : values.shape[1]].contiguous()
        return GatedChannels(values, channels, counts)

    def _choose(self, statistic: Tensor) -> tuple[Tensor, Tensor | float]:
        """Bool `[N, C]`, and the threshold: one for all, or `[N, 1]`."""
        if self.threshold is not None:
            return statistic > self.threshold, self.threshold
        assert self.k is not None
        unknown = statistic.isnan()
        order = statistic.masked_fill(unknown, -float("inf")).sort(dim=1, descending=True, stable=True)
        active = torch.zeros_like(unknown).scatter(1, order.indices[:, : self.k], 1) & ~unknown
        last = max(self.k, 1)
        return active, order.values[:, last - 1 : last]

    def _check(self, input: Tensor) -> None:
        _check.floating(input, "input")
        _channels.check_activation(input)
        if self.k is not None and self.k > input.shape[1]:
            raise ValueError(f"k is {self.k}, but input has {input.shape[1]} channels: {describe(input)}")

    def _fixed(self, input: Tensor) -> tuple[Tensor, Tensor]:
        assert self._mask is not None and self._channels is not None
        _channels.check_activation(input)
        if input.shape[1] != self._mask.shape[0]:
            raise ValueError(f"input must have shape [N, {self._mask.shape[0]}, ...] for mask, got {describe(input)}")
        if input.is_meta:  # a mask keeps its values while the model has none
            return self._mask.to("meta"), self._channels.to("meta")
        _check.same_device("mask", self._mask, "input", input)
        return self._mask, self._channels

    def extra_repr(self) -> str:
        """What it keeps, and how."""
        if self._mask is not None and self._channels is not None:
            parts = [f"{len(self._channels)} of {len(self._mask)} channels"]
        else:
            parts = [f"k={self.k}" if self.k is not None else f"threshold={self.threshold:g}"]
            parts.append(f"statistic={self.statistic}")
            if self.straight_through:
                parts.append(f"straight_through=True, temperature={self.temperature:g}")
        if self.compact:
            parts.append("compact=True")
        if self.max_channels is not None:
            parts.append(f"max_channels={self.max_channels}")
        return ", ".join(parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `fn` may cast or leave memory uninitialised (to_empty): the mask only follows the device.
        super()._apply(fn, recurse)
        if self._mask is not None and self._channels is not None:
            device = fn(torch.empty(0, dtype=torch.bool, device=self._mask.device)).device
            if device.type != "meta":
                self._mask, self._channels = self._mask.to(device), self._channels.to(device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._mask is not None:
            destination[prefix + _KEY] = self._mask.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + _KEY
        saved = state_dict.get(key)
        if self._mask is None or saved is None:
            return
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if getattr(saved, "is_meta", False):
            return
        try:
            _check_mask(saved)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{key}: {error}")
            return
        if saved.shape != self._mask.shape:
            error_msgs.append(f"{key}: mask must have shape {list(self._mask.shape)}, got {describe(saved)}")
            return
        self.set_mask(saved.to(self._mask.device))


def _check_mask(mask: object) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor [C], got {describe(mask)}")
    if mask.dim() != 1:
        raise ValueError(f"mask must have shape [C], got {describe(mask)}")
