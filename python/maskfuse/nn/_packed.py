"""Layers with a mask whose active weights can be copied together for inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..mask import Mask
from ._with_mask import LayerWithMask

if TYPE_CHECKING:
    from typing_extensions import Self


def _version(weight: Tensor) -> int | None:
    """How often the weight was changed in place; None for inference tensors, which do not count."""
    return None if weight.is_inference() else weight._version


class PackedLayer(LayerWithMask):
    """A layer with a mask that may have a packed copy of what it keeps of its weight."""

    packs_on: ClassVar[tuple[str, ...]] = ("cpu",)  # devices whose kernels read a packed weight
    _packed: list[Tensor]
    # What is kept of the weight, which state of it, the mask, and the copy: one read, while another thread may pack.
    _packed_from: tuple[Tensor, int | None, Mask, list[Tensor]] | None

    @abstractmethod
    def _pack(self, mask: Mask) -> list[Tensor]:
        """The weight packed under a mask, as the op takes it behind the plan; empty where nothing is gained."""

    def pack(self) -> Self:
        """Copies the active weights together; returns itself.

        Calls need not collect them from the weight then: the copy, of at most half of the weights and in float32 for
        half types, is kept in the order in which kernels walk the mask. A linear layer of which few weights are active
        keeps a second one, and calls with at most 16 rows read nothing else (with more active, at most 8).
        `packed_nbytes` says what they take.

        On CUDA a linear layer keeps a bit for each weight beside its active weights, and calls with at most 16 rows
        read nothing else; packing waits for the device once. A convolution packs nothing there.

        For inference. A weight that was replaced, changed in place or wrapped by a transform is noticed: the
        call then reads the weight itself. Not noticed are a change through `weight.data`, and any change before
        compiled code runs: call `unpack` then. `unpack`, `set_mask`, `load_state_dict`, `reset_parameters`, `train`
        and every move or cast of the layer drop the copy. On other devices, and where every weight is active, there is
        nothing to gain and nothing is packed.
        """
        self.unpack()
        kept, mask = self._kept, self._mask
        if kept.device.type in self.packs_on and mask.plan:
            version, packed = _version(kept), self._pack(mask)
            if mask is self._mask:  # no other thread has set another meanwhile
                self._packed_from = (kept, version, mask, packed)
                self._packed = packed
        return self

    def _packed_for(self, weight: Tensor, mask: Mask) -> list[Tensor]:
        """The packed copy, where it is of `weight`, which has not changed since, and of `mask`; else none."""
        found = self._packed_from
        if found is None:
            return []
        kept, version, packed_mask, packed = found
        # Traced code cannot ask for a version.
        if torch.compiler.is_compiling():
            return packed if kept is weight else []
        held = kept is weight and packed_mask is mask and (version is None or version == weight._version)
        return packed if held else []

    def unpack(self) -> Self:
        """Drops what `pack` copied; returns itself."""
        self._packed_from = None
        self._packed = []
        return self

    @property
    def packed_nbytes(self) -> int:
        """Bytes that the packed weight takes, 0 where there is none."""
        return sum(t.numel() * t.element_size() for t in self._packed)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, as `nn.Module.train` does, and returns itself; training drops the packed weight.

        Args:
            mode: True for training, False for eval mode.

        Raises:
            ValueError: `mode` is no bool.
        """
        if mode:
            self.unpack()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no packed weight."""
        return {**self.__dict__, "_packed": [], "_packed_from": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.unpack()
        return self
