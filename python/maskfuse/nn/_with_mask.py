"""What layers with a binary mask have in common: where it is, what fits it, how it is saved and moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..functional._check import mask_of
from ..mask import Mask

if TYPE_CHECKING:
    from typing_extensions import Self

KEY = "mask_bits"


class LayerWithMask(nn.Module):
    """A layer with a `Mask` on its weight, which is no buffer; a base for `MaskedLayer` and `CompactLayer`.

    The mask is saved in `state_dict` as `mask_bits` and follows the layer's device; nothing that averages, broadcasts
    or casts buffers touches it. Copies share it.
    """

    _mask: Mask

    @property
    def _kept(self) -> Any:
        """What is kept of the weight, and is where the mask should be."""
        return self.weight

    @property
    def mask_bits(self) -> Tensor:
        """`mask.bits`, under the name of its entry in `state_dict`: some checkpointers look entries up."""
        return self._mask.bits

    @property
    def mask(self) -> Mask:
        """The current mask; change it with `set_mask`."""
        return self._mask

    def extra_repr(self) -> str:
        """The plain layer's, with density and structure of the mask."""
        return f"{super().extra_repr()}, density={self._mask.density:.4g}, structure={self._mask.structure}"

    def _fitting(self, mask: Mask | Tensor, weight: Tensor) -> Mask:
        """A mask of the weight's shape, as `set_mask` takes it, on the layer's device.

        Raises:
            TypeError: no `Mask`, nor a bool or 0/1 integer tensor.
            ValueError: the shape is not the weight's.
        """
        if isinstance(mask, Tensor):
            if mask.is_floating_point():
                raise TypeError(
                    f"mask must be a Mask, bool or 0/1 integers, got a floating tensor {list(mask.shape)}; "
                    "a layer's mask is binary"
                )
            mask = mask.to(self._kept.device) if not self._kept.is_meta else mask
        elif isinstance(mask, Mask):
            mask = self._placed(mask)
        checked = mask_of(mask, weight, Mask.from_dense)
        assert isinstance(checked, Mask)
        return checked

    def _placed(self, mask: Mask) -> Mask:
        # Bits have values, so they stay where they are while the parameters are on meta.
        if self._kept.is_meta:
            return mask
        mask = mask.to(self._kept.device)
        _ = mask.plan  # now, not inside a traced call
        return mask

    def _saved_mask(self, saved: Tensor | None, key: str, shape: Sequence[int], error_msgs: list[str]) -> Mask | None:
        """The mask of a `state_dict`, or the current one where that has none; None where what it has is corrupt."""
        if saved is None or getattr(saved, "is_meta", False):
            return self._mask
        try:
            return Mask.from_bits(saved, shape)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{key}: {error}")
            return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `fn` may cast or leave memory uninitialised (to_empty): the bits only follow the device.
        super()._apply(fn, recurse)
        self._mask = self._placed(self._mask)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + KEY] = self._mask.bits.clone()  # the mask may be shared, and must not change
