"""`MaskedLinear`: an `nn.Linear` part of whose weight is switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..backends import requested
from ..functional._check import mask_of
from ..functional.masked_linear import checked_masked_linear
from ..mask import Mask

_KEY = "mask_bits"


def _version(weight: Tensor) -> int | None:
    """How often the weight was changed in place; None for inference tensors, which do not count."""
    return None if weight.is_inference() else weight._version


class MaskedLinear(nn.Linear):
    """`nn.Linear` with a binary mask on its weight.

    `weight` stays a dense parameter `[out_features, in_features]`. Under the mask it is zero, in value and in
    gradient, unless `set_mask(mask, retain=True)` keeps the values there; they contribute nothing either way.

    The mask is no buffer: it is saved in `state_dict` as `mask_bits` and follows the layer's device, and nothing
    that averages, broadcasts or casts buffers touches it. A plain layer's `state_dict` loads into this one and
    keeps the current mask; a masked layer's brings its mask, and the values under it where they were retained.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        mask: `Mask`, bool or 0/1 integer tensor `[out_features, in_features]`; None masks nothing.
    """

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
        self._mask = self._placed(Mask.full((out_features, in_features)))
        self._retain = False
        self._packed: list[Tensor] = []
        self._packed_from: tuple[Tensor, int | None] | None = None  # the weight, and which state of it
        if mask is not None:
            self.set_mask(mask)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Mask | Tensor | None = None) -> MaskedLinear:
        """A masked layer with copies of a plain layer's parameters, on its device, in its dtype and mode.

        Without `mask` nothing is masked, or, where `layer` is masked itself, what it masks.

        Raises:
            TypeError: `layer` is no `nn.Linear`.
        """
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer must be an nn.Linear, got {type(layer).__name__}")
        weight = layer.weight
        # Made on meta so that no values are drawn from the random generator.
        twin = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta", dtype=weight.dtype)
        twin.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        if layer.bias is not None:
            twin.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
        twin.train(layer.training)
        if isinstance(layer, MaskedLinear):
            twin.set_mask(layer.mask, retain=layer._retain)
        else:
            twin._mask = twin._placed(twin._mask)
        if mask is not None:
            twin.set_mask(mask)
        return twin

    def to_dense(self) -> nn.Linear:
        """A plain layer with the masked weight folded in; copies, nothing is shared."""
        layer = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype
        )
        weight = self.weight.detach().clone()
        if not weight.is_meta:
            weight.masked_fill_(~self._mask.dense(), 0)
        layer.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return layer.train(self.training)

    @property
    def mask_bits(self) -> Tensor:
        """`mask.bits`, under the name of its entry in `state_dict`: some checkpointers look entries up."""
        return self._mask.bits

    @property
    def mask(self) -> Mask:
        """The current mask; change it with `set_mask`."""
        return self._mask

    def set_mask(self, mask: Mask | Tensor, retain: bool = False) -> None:
        """Masks the weight anew and writes zero under the mask, or with `retain` keeps the values there.

        Retained values contribute nothing and get no gradient; they come back when a later mask uncovers them. What
        reads `weight` itself, as the fast path of `nn.TransformerEncoderLayer` in eval mode does, sees them.

        Raises:
            TypeError: no `Mask`, nor a bool or 0/1 integer tensor (a floating tensor is a real-valued mask:
                `maskfuse.masked_linear` takes it).
            ValueError: the shape is not the weight's.
        """
        if isinstance(mask, Tensor):
            if mask.is_floating_point():
                raise TypeError(
                    f"mask must be a Mask, bool or 0/1 integers, got a floating tensor {list(mask.shape)}; "
                    "a layer's mask is binary"
                )
            mask = mask.to(self.weight.device) if not self.weight.is_meta else mask
        elif isinstance(mask, Mask):
            mask = self._placed(mask)
        checked = mask_of(mask, self.weight)
        assert isinstance(checked, Mask)
        self.unpack()
        self._mask = self._placed(checked)
        self._retain = bool(retain)
        self._zero_masked()

    def reset_parameters(self) -> None:
        """Draws weight and bias as `nn.Linear` does; under the mask the weight is zero again."""
        super().reset_parameters()
        if hasattr(self, "_mask"):  # nn.Linear's constructor calls this first
            self.unpack()
            self._zero_masked()

    def forward(self, input: Tensor) -> Tensor:
        """`input` `[..., in_features]` -> `[..., out_features]`; see `maskfuse.masked_linear`."""
        weight, bias, mask, packed = self.weight, self.bias, self._mask, self._packed
        if packed and not self._packed_holds(weight):
            packed = []
        if type(input) is Tensor and input.is_cpu and weight.is_cpu and ops.plain() and requested() is None:
            # The short way to the op, which checks its operands as well; where it refuses, the long way says why.
            plan = [*mask.plan, *packed] if packed else mask.plan
            if mask.known_full and ops.LIBRARY_GEMM:
                return super().forward(input)
            try:
                if torch.is_grad_enabled() and (
                    weight.requires_grad or input.requires_grad or (bias is not None and bias.requires_grad)
                ):
                    return ops.masked_linear.record(input, weight, mask.bits, plan, bias)
                return ops.masked_linear_unrecorded(input, weight, mask.bits, plan, bias)
            except RuntimeError:
                pass
        return checked_masked_linear(input, weight, mask, bias, packed)

    def pack(self) -> MaskedLinear:
        """Copies the active weights together; returns itself.

        Where few weights are active, calls with at most 16 rows then read nothing else (with more active, at most 8),
        and larger calls need not collect them from the weight: that copy, of at most half of the weights and in float32
        for half types, is kept in the order in which kernels walk the mask. `packed_nbytes` says what both take.

        For inference on the CPU. A weight that was replaced, changed in place or wrapped by a transform is noticed: the
        call then reads the weight itself. Not noticed are a change through `weight.data`, and any change before
        compiled code runs: call `unpack` then. `unpack`, `set_mask`, `load_state_dict`, `reset_parameters`, `train`
        and every move or cast of the layer drop the copy. Elsewhere than on the CPU, and where every weight is active,
        there is nothing to gain and nothing is packed.
        """
        self.unpack()
        if self.weight.device.type == "cpu" and self._mask.plan:
            self._packed = torch.ops.maskfuse.masked_linear_pack(self.weight.detach(), self._mask.bits, self._mask.plan)
            self._packed_from = (self.weight, _version(self.weight))
        return self

    def _packed_holds(self, weight: Tensor) -> bool:
        """Whether `weight` is the one that was packed, and has not changed since."""
        if self._packed_from is None:
            return False
        packed, version = self._packed_from
        # Traced code cannot ask for a version.
        return packed is weight and (version is None or torch.compiler.is_compiling() or version == weight._version)

    def unpack(self) -> MaskedLinear:
        """Drops what `pack` copied; returns itself."""
        self._packed = []
        self._packed_from = None
        return self

    @property
    def packed_nbytes(self) -> int:
        """Bytes that the packed weight takes, 0 where there is none."""
        return sum(t.numel() * t.element_size() for t in self._packed)

    def train(self, mode: bool = True) -> MaskedLinear:
        """Sets the mode, as `nn.Module.train` does; training drops the packed weight."""
        if mode:
            self.unpack()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no packed weight."""
        return {**self.__dict__, "_packed": [], "_packed_from": None}

    def extra_repr(self) -> str:
        """`nn.Linear`'s, with density and structure of the mask."""
        return f"{super().extra_repr()}, density={self._mask.density:.4g}, structure={self._mask.structure}"

    def _placed(self, mask: Mask) -> Mask:
        # Bits have values, so they stay where they are while the parameters are on meta.
        if self.weight.is_meta:
            return mask
        mask = mask.to(self.weight.device)
        _ = mask.plan  # now, not inside a traced call
        return mask

    @torch.no_grad()
    def _zero_masked(self) -> None:
        if self._retain or self.weight.is_meta:
            return
        self.weight.masked_fill_(~self._mask.dense(), 0)

    @torch.no_grad()
    def _has_values_under_mask(self) -> bool:
        return bool(self.weight.masked_fill(self._mask.dense(), 0).any())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLinear:
        # `fn` may cast or leave memory uninitialised (to_empty): the bits only follow the device.
        super()._apply(fn, recurse)
        self.unpack()
        self._mask = self._placed(self._mask)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _KEY] = self._mask.bits.clone()  # the mask may be shared, and must not change

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
        key = prefix + _KEY
        saved = state_dict.get(key)
        mask = self._mask
        if saved is not None and not getattr(saved, "is_meta", False):
            try:
                mask = Mask.from_bits(saved, self.weight.shape)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{key}: {error}")
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
        if self.weight.is_meta or self._retain or not self._has_values_under_mask():
            return
        if saved is not None:
            self._retain = True  # so was the layer that was saved: what it kept is kept
        elif local_metadata.get("assign_to_params_buffers", False):
            # The parameter is now the caller's tensor, which is not ours to write to.
            weight = self.weight.detach().masked_fill(~self._mask.dense(), 0)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        else:
            self._zero_masked()
