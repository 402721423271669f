"""What compact layers have in common: active values alone, and how their mask changes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import describe
from .._sharded import whole
from ..functional.active_weights import collect_active, expand_active
from ..mask import Mask
from ._compact_masks import moved_frozen, set_masks, show_size, spread_frozen
from ._masked import MaskedLayer, copied
from ._optimizer_state import Optimizers, replace
from ._packed import PackedLayer
from ._with_mask import KEY
from .freeze import freeze, frozen_mask

if TYPE_CHECKING:
    from typing_extensions import Self


class CompactLayer(PackedLayer):
    """A layer with a parameter `values` that has the active weights alone, row after row of the mask.

    Subclasses name the masked layer that computes the same.
    """

    masked: ClassVar[type[MaskedLayer]]
    values: nn.Parameter
    bias: Any  # a parameter or None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "masked" in vars(cls) and "compact" not in vars(cls.masked):
            cls.masked.compact = cls

    def _set_up(self, layer: Any, mask: Mask | Tensor | None) -> None:
        """What a constructor ends with: takes over what a plain or masked layer has."""
        self.unpack()
        plain = self.masked.plain(**self.masked._arguments(layer), device="meta")
        module = vars(nn.Module())
        for name, value in vars(plain).items():
            if name not in module:
                setattr(self, name, value)
        weight = layer.weight.detach()
        self.values = nn.Parameter(weight.reshape(-1), requires_grad=layer.weight.requires_grad)
        self.register_parameter("bias", layer.bias)
        self._mask = self._placed(Mask.full(weight.shape))
        if mask is not None:
            mask = self._fitting(mask, weight)
            self.values = nn.Parameter(collect_active(weight, mask), requires_grad=layer.weight.requires_grad)
            self._mask = self._placed(mask)
        frozen = frozen_mask(layer.weight)
        if frozen is not None:
            freeze(self.values, frozen.dense()[self._mask.to(frozen.device).dense()])

    def _tear_down(self, expanded: dict[int, nn.Parameter]) -> None:
        """Undoes `_set_up`: what is left is a plain layer's. `expanded` has the weights of values that are shared."""
        values, bias = self.values, self.bias
        weight = expanded.get(id(values))
        if weight is None:
            weight = self._whole_weight()
        expanded[id(values)] = weight
        for name in ("values", "bias", "_mask", "_packed", "_packed_from"):
            delattr(self, name)
        self._parameters.update(weight=weight, bias=bias)  # `weight` is a property until the class is another one

    @classmethod
    def _take_over(cls, layer: Any, mask: Mask, collected: dict[int, nn.Parameter]) -> None:
        """Makes a plain layer a compact one; the object stays. `collected` has the values of shared weights."""
        plain = copy.copy(layer)
        plain._parameters = dict(layer._parameters)
        weight = layer._parameters.pop("weight")
        layer._parameters.pop("bias")
        layer.__class__ = cls
        layer._set_up(plain, mask)
        layer.values = collected.setdefault(id(weight), layer.values)

    @property
    def _kept(self) -> Any:
        return self.values

    def _whole_weight(self) -> nn.Parameter:
        """The weight as a parameter, trained where the values are."""
        weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        frozen = frozen_mask(self.values)
        return weight if frozen is None else freeze(weight, spread_frozen(frozen, self._mask))

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Mask | Tensor | None = None) -> Self:
        """A compact layer with copies of a plain or masked layer's parameters, on its device, in its dtype and mode.

        Values under the mask are left behind, retained ones too.

        Args:
            layer: the plain or masked layer that this is the twin of.
            mask: `Mask`, bool or 0/1 integer tensor of the weight's shape. None: nothing is masked, or, where `layer`
                is masked itself, what it masks.

        Returns:
            A layer of this class, with its own parameters.

        Raises:
            TypeError: `layer` is neither the plain nor the masked layer that this is the twin of, or it is gated;
                `mask` is floating, or no mask.
            ValueError: `mask` has another shape than the weight, or integers other than 0 and 1.
        """
        masked: Any = cls.masked.from_dense(layer, mask)
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        twin._set_up(masked, masked.mask)
        twin.train(masked.training)
        return twin

    def to_masked(self) -> Any:
        """A `MaskedLinear` or `MaskedConv2d` with copies of the parameters and the same mask."""
        layer: Any = self.masked(**self.masked._arguments(self), device="meta", dtype=self.values.dtype)
        layer.weight = self._whole_weight()
        if self.bias is not None:
            layer.bias = copied(self.bias)
        layer._mask = self._mask
        return layer.train(self.training)

    def to_dense(self) -> Any:
        """A plain layer with the same weight, zero where the mask is; copies, nothing is shared."""
        return self.to_masked().to_dense()

    @property
    def weight(self) -> Tensor:
        """The weight in full, zero under the mask, made anew each time: what is written to it is lost.

        Differentiable. For what reads a plain layer's `weight`; calls of the layer do not. Of sharded values it is on
        every process, which have to ask together.
        """
        return expand_active(whole(self.values), self._mask)

    def set_mask(self, mask: Mask | Tensor, optimizer: Optimizers | None = None) -> None:
        """Changes which weights are active: of the values, of their gradient and of optimizers' state.

        Weights that stay active keep their value, gradient and state. Others are dropped for good; new ones are zero
        and begin with the state of a new weight, which is zero for moments; where `values` are frozen in part
        (`nn.freeze`), they are trained. State of a single number, as the count of steps, is kept. `values` stays the
        parameter it is, with hooks, at another size: what has buffers for it (`DistributedDataParallel`, a CUDA graph)
        is to be made anew. Call it between a backward pass and the next forward pass: a graph that has saved the old
        values refuses to go back through them.

        Args:
            mask: of the weight's shape; `Mask`, bool or 0/1 integer tensor.
            optimizer: all that have `values`, one or several. Without one, an optimizer that has state of the
                weights from before is refused when it steps next.

        Raises:
            TypeError: a mask of another type, no optimizer, or one whose state is not of single weights (L-BFGS).
            ValueError: another shape, an optimizer that has not the values, state of it of another shape than
                theirs, or values that are sharded or computed from others (`torch.nn.utils.prune`). Nothing is changed
                then.
            RuntimeError: the optimizer's state is of the weights before a mask that was set without it.
        """
        set_masks([self], mask, optimizer)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws values and bias as the plain layer does, of which the active weights are taken."""
        self.unpack()
        if self.values.is_meta:
            return
        device, dtype = self.values.device, self.values.dtype
        plain: Any = self.masked.plain(**self.masked._arguments(self), device=device, dtype=dtype)
        self.values.copy_(collect_active(plain.weight.detach(), self._mask))
        if self.bias is not None:
            self.bias.copy_(plain.bias)

    def extra_repr(self) -> str:
        """The plain layer's, with density and structure of the mask."""
        plain: Any = self.masked.plain
        return plain.extra_repr(self) + super().extra_repr()

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
        mask = self._saved_mask(state_dict.get(prefix + KEY), prefix + KEY, self._mask.shape, error_msgs)
        if mask is None:
            return  # nothing of this layer is loaded
        state = {key: value for key, value in state_dict.items() if key != prefix + KEY}
        name, of_plain = prefix + "values", prefix + "weight"
        if name not in state and of_plain in state:
            weight = state.pop(of_plain).detach()
            try:
                state[name] = collect_active(weight, mask if weight.is_meta else mask.to(weight.device))
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{of_plain}: {error}")
                return
        shapes = {name: [mask.active], prefix + "bias": None if self.bias is None else list(self.bias.shape)}
        for key, shape in shapes.items():
            if key in state and shape is not None and list(state[key].shape) != shape:
                error_msgs.append(f"{key}: must have shape {shape}, got {describe(state[key])}")
                return
        if name in state and mask != self._mask:
            frozen = moved_frozen(self.values, self._mask, mask)
            if self.values.shape[0] != mask.active:
                replace(self.values, self.values.new_zeros(mask.active).detach())
                show_size(self)
            if frozen is not None:
                freeze(self.values, frozen)
            self._mask = self._placed(mask)
            self.values.grad = None
        super()._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self._mask = self._placed(self._mask)  # the parameter may be another one, on another device
