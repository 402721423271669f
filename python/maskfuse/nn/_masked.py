"""What masked layers have in common: the mask, how it is set, saved and moved, and packed weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from .._sharded import local, local_part, placed_as
from ..backends import requested
from ..mask import Mask
from . import _unmet
from ._packed import PackedLayer
from ._with_mask import KEY
from .freeze import freeze, frozen_mask

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._compact import CompactLayer


class MaskedLayer(PackedLayer):
    """A layer with a dense parameter `weight` and a binary mask on it; a base for `MaskedLinear` and its like.

    Subclasses name the plain layer they are twins of, and what makes another one like it.
    """

    plain: ClassVar[type[nn.Module]]
    compact: ClassVar[type[CompactLayer]]
    weight: Any  # as the plain layer declares them
    bias: Any

    @staticmethod
    @abstractmethod
    def _arguments(layer: Any) -> dict[str, Any]:
        """What a plain layer, or its twin, is made from, but for device and dtype."""

    def _set_up(self, mask: Mask | Tensor | None) -> None:
        """What a constructor ends with."""
        self._mask = self._placed(Mask.full(self.weight.shape))
        self._retain = False
        self.unpack()
        if mask is not None:
            self.set_mask(mask)

    def _tear_down(self) -> None:
        """Undoes `_set_up`: what is left is a plain layer's, with zeros under the mask."""
        self._retain = False
        self._zero_masked()
        _unmet.forget(self)
        for name in ("_mask", "_retain", "_packed", "_packed_from"):
            delattr(self, name)

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Mask | Tensor | None = None) -> Self:
        """A masked layer with copies of a plain layer's parameters, on its device, in its dtype and mode, frozen alike.

        Args:
            layer: the plain layer that this is the twin of, or a masked one.
            mask: `Mask`, bool or 0/1 integer tensor of the weight's shape. None: nothing is masked, or, where `layer`
                is masked itself, what it masks.

        Returns:
            A layer of this class, with its own parameters.

        Raises:
            TypeError: `layer` is not the plain layer that this is the twin of, or it is gated; `mask` is floating, or
                no mask.
            ValueError: `mask` has another shape than the weight, or integers other than 0 and 1.
        """
        if not isinstance(layer, cls.plain):
            raise TypeError(f"layer must be an nn.{cls.plain.__name__}, got {type(layer).__name__}")
        if hasattr(layer, "harden"):
            raise TypeError(f"layer must not be gated, got {type(layer).__name__}: its harden() is masked")
        # Made on meta so that no values are drawn from the random generator.
        twin = cls(**cls._arguments(layer), device="meta", dtype=layer.weight.dtype)
        _copy_parameters(layer, twin)
        if isinstance(layer, MaskedLayer):
            twin.set_mask(layer.mask, retain=layer._retain)
        else:
            twin._mask = twin._placed(twin._mask)
        if mask is not None:
            twin.set_mask(mask)
        return twin

    def to_dense(self) -> Any:
        """A plain layer with the masked weight folded in; copies, nothing is shared."""
        layer: Any = self.plain(**self._arguments(self), device="meta", dtype=self.weight.dtype)
        _copy_parameters(self, layer)
        if not self.weight.is_meta:
            with torch.no_grad():
                layer.weight.masked_fill_(~self._mask.dense(), 0)
        return layer

    def to_compact(self) -> Any:
        """A `CompactLinear` or `CompactConv2d` with copies of the active weights and the bias, and the same mask.

        Values retained under the mask are left behind.
        """
        return self.compact.from_dense(self)

    def set_mask(self, mask: Mask | Tensor, retain: bool = False) -> None:
        """Masks the weight anew and writes zero under the mask, or with `retain` keeps the values there.

        Retained values contribute nothing and get no gradient; they come back when a later mask uncovers them. What
        reads `weight` itself, as the fast path of `nn.TransformerEncoderLayer` in eval mode does, sees them.

        Calls of the layer in other threads meanwhile compute with the old mask or the new one, whole; without `retain`
        some of the weights that the new one masks may be zero already for a call that has the old one.

        Args:
            mask: of the weight's shape; `Mask`, bool or 0/1 integer tensor.
            retain: keep the values under the mask.

        Raises:
            TypeError: no `Mask`, nor a bool or 0/1 integer tensor (a floating tensor is a real-valued mask:
                the functions of `maskfuse` take it).
            ValueError: the shape is not the weight's, or integers other than 0 and 1.
        """
        checked = self._fitting(mask, self.weight)
        placed = self._placed(checked)
        self.unpack()
        # Whatever interrupts this, the layer is one that computes with its mask: until the weight is zero under it, one
        # that retains values.
        self._retain = True
        self._mask = placed
        if not retain:
            self._zero_masked()
            self._retain = False
        _unmet.add(self, _weight_and_mask)

    def reset_parameters(self) -> None:
        """Draws weight and bias as the plain layer does; the weight is zero again under a mask that retains nothing."""
        super().reset_parameters()  # type: ignore[misc]
        if hasattr(self, "_mask"):  # not yet set while the plain layer's constructor runs
            self.unpack()
            if not self._retain:
                self._zero_masked()

    @torch.no_grad()
    def _zero_masked(self) -> None:
        if self.weight.is_meta:
            return
        local(self.weight).masked_fill_(local_part(~self._mask.dense(), self.weight), 0)

    @torch.no_grad()
    def _has_values_under_mask(self) -> bool:
        return bool(local(self.weight).masked_fill(local_part(self._mask.dense(), self.weight), 0).any())

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
        self.unpack()
        key = prefix + KEY
        saved = state_dict.get(key)
        mask = self._saved_mask(saved, key, self.weight.shape, error_msgs)
        if mask is None:
            return  # nothing of this layer is loaded
        errors = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if len(error_msgs) > errors:
            return
        self._mask = self._placed(mask)
        if saved is not None:
            _unmet.add(self, _weight_and_mask)
        if self.weight.is_meta or self._retain or not self._has_values_under_mask():
            return
        if saved is not None:
            self._retain = True  # so was the layer that was saved: what it kept is kept
        elif local_metadata.get("assign_to_params_buffers", False):
            # The parameter is now the caller's tensor, which is not ours to write to.
            weight = self.weight.detach().masked_fill(placed_as(~self._mask.dense(), self.weight), 0)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        else:
            self._zero_masked()


def takes_short_way(input: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask) -> bool:
    """Whether a call may go straight to the CPU's op, which checks all of its operands but where they are: nothing is
    traced, transformed or cast, and no backend was asked for. Where the op refuses, the function says why in its own
    words."""
    return (
        type(input) is Tensor
        and input.is_cpu
        and weight.is_cpu
        and (bias is None or bias.is_cpu)
        and mask.bits.is_cpu
        and ops.plain()
        and requested() is None
    )


def is_recorded(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a gradient of an operand may be asked for."""
    return torch.is_grad_enabled() and (
        weight.requires_grad or input.requires_grad or (bias is not None and bias.requires_grad)
    )


def weight_of(layer: MaskedLayer) -> Tensor | None:
    """The weight, without asking a parametrization to compute it, which may have effects."""
    return layer._parameters.get("weight", layer.__dict__.get("weight"))


def _weight_and_mask(layer: MaskedLayer) -> tuple[Tensor | None, Mask]:
    return weight_of(layer), layer._mask


def copied(parameter: Tensor) -> nn.Parameter:
    """A copy that is trained where the parameter is, in part where it is frozen."""
    copy = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    frozen = frozen_mask(parameter)
    return copy if frozen is None else freeze(copy, frozen)


def _copy_parameters(layer: nn.Module, to: nn.Module) -> None:
    for name in ("weight", "bias"):
        parameter = getattr(layer, name)
        if parameter is not None:
            setattr(to, name, copied(parameter))
    to.train(layer.training)
