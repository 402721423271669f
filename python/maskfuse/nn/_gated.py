"""What gated layers have in common: scores, the gates made of them, their penalty, and hardening them to a mask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import describe
from .._sharded import is_sharded
from ..mask import Mask
from ._masked import MaskedLayer, _copy_parameters, copied
from ._numbers import number, positive

if TYPE_CHECKING:
    from typing_extensions import Self

# The temperature that each kind of gate starts with; 2/3 is Louizos et al.'s.
_TEMPERATURES = {"sigmoid": 1.0, "straight_through": 1.0, "hard_concrete": 2 / 3}

# What a hard-concrete gate is stretched to before it is cut to 0..1, so that 0 and 1 have a probability (ibid.).
_LOW, _HIGH = -0.1, 1.1

_HALF = (torch.bfloat16, torch.float16)
_KEY = "temperature"


class GatedLayer(nn.Module):
    """A layer whose `weight` is scaled by gates made of its `scores`; a base for `GatedLinear` and its like.

    Subclasses name the masked layer that a gated one hardens to, which knows the plain one.
    """

    hardened: ClassVar[type[MaskedLayer]]
    weight: Any  # as the plain layer declares them
    bias: Any
    scores: Any

    def _set_up(self, kind: str, temperature: float | None, initial_score: float) -> None:
        """What a constructor ends with."""
        if kind not in _TEMPERATURES:
            raise ValueError(f"kind must be one of {', '.join(_TEMPERATURES)}, got {kind!r}")
        self.kind = kind
        self.temperature = _TEMPERATURES[kind] if temperature is None else temperature
        self.initial_score = number(initial_score, "initial_score")
        self.scores = nn.Parameter(torch.full_like(self.weight.detach(), self.initial_score))

    @classmethod
    def from_dense(
        cls,
        layer: nn.Module,
        kind: str | None = None,
        temperature: float | None = None,
        initial_score: float | None = None,
    ) -> Self:
        """A gated layer with copies of a plain layer's parameters, on its device, in its dtype and mode.

        Gates start at `initial_score`, which by default leaves seven eighths of each weight. What is not given is as
        in the constructor, or, where `layer` is gated itself, as there; so are the scores then.

        Args:
            layer: the plain layer that this is the twin of, or a gated one.
            kind: "sigmoid", "straight_through" or "hard_concrete".
            temperature: of the gates, positive.
            initial_score: what all scores start as.

        Returns:
            A layer of this class, with its own parameters.

        Raises:
            TypeError: `layer` is not the plain layer that this is the twin of, or it is masked; `temperature` or
                `initial_score` is no number.
            ValueError: another kind, a temperature that is not positive and finite, or NaN.
        """
        plain = cls.hardened.plain
        if not isinstance(layer, plain):
            raise TypeError(f"layer must be an nn.{plain.__name__}, got {type(layer).__name__}")
        if isinstance(layer, MaskedLayer):
            raise TypeError(f"layer must not be masked, got {type(layer).__name__}: its to_dense() has no mask")
        options: dict[str, Any] = {"kind": kind, "temperature": temperature, "initial_score": initial_score}
        options = {name: value for name, value in options.items() if value is not None}
        gated = layer if isinstance(layer, GatedLayer) else None
        if gated is not None:
            if options.get("kind", gated.kind) == gated.kind:  # another kind has another scale of temperatures
                options.setdefault("temperature", gated.temperature)
            options = {"kind": gated.kind, "initial_score": gated.initial_score, **options}
        # Made on meta so that no values are drawn from the random generator.
        twin = cls(**cls.hardened._arguments(layer), device="meta", dtype=layer.weight.dtype, **options)
        _copy_parameters(layer, twin)
        if gated is not None and initial_score is None:
            twin.scores = copied(gated.scores)
        else:
            twin.scores = nn.Parameter(torch.full_like(twin.weight.detach(), twin.initial_score))
        return twin

    def to_dense(self) -> Any:
        """A plain layer with the weight times its gate in eval mode; copies, nothing is shared."""
        plain: Any = self.hardened.plain
        layer = plain(**self.hardened._arguments(self), device="meta", dtype=self.weight.dtype)
        _copy_parameters(self, layer)
        with torch.no_grad():
            gate = self._gate(sampled=False)
            layer.weight.copy_(self.weight.to(gate.dtype) * gate)
        return layer

    def harden(self, threshold: float = 0.5) -> Any:
        """The masked twin: its mask is `gate > threshold`, and its weight there is the weight times the gate.

        Gates are those of eval mode, so binary gates leave the weight as it is. Outputs then agree with this layer's in
        eval mode up to rounding where no gate in `(0, threshold]` is cut: for straight-through gates by any threshold,
        for hard-concrete ones by 0, and for sigmoid ones as far as their temperature has driven them to 0 and 1. Under
        the mask the twin's weight is zero. Copies, nothing is shared; dtype, device, mode and `requires_grad` are this
        layer's.

        Args:
            threshold: above which a gate stays open, at least 0 and below 1.

        Raises:
            TypeError: `threshold` is no number.
            ValueError: `threshold` is not in `[0, 1)`, or the scores are on meta or sharded, so that no mask can be
                read from them.
        """
        threshold = number(threshold, "threshold")
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}")
        if self.scores.is_meta or is_sharded(self.scores):
            where = "on meta" if self.scores.is_meta else "sharded"
            raise ValueError(
                f"scores must have their values here to be hardened, got {where}: {list(self.scores.shape)}"
            )
        with torch.no_grad():
            mask = Mask.from_dense(self._gate(sampled=False) > threshold)
        twin = self.hardened.from_dense(self.to_dense(), mask)
        if not twin.weight.is_contiguous():  # kernels read the weight's rows, and would copy it
            twin.weight.data = twin.weight.data.contiguous()
        return twin

    @property
    def temperature(self) -> float:
        """What scores are divided by; positive, and changed by assignment: as it falls, gates go to 0 and 1."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = positive(value, "temperature")

    def gate(self) -> Tensor:
        """The gates as the next call takes them, of the weight's shape and dtype, differentiable in the scores.

        Hard-concrete gates in training are drawn anew each time.
        """
        return self._gate(sampled=self.training).to(self.scores.dtype)

    def l1_penalty(self) -> Tensor:
        """What to add, times a coefficient, to a loss so that gates close: a scalar, differentiable in the scores.

        The L1 norm of the gates, which is their sum; for straight-through gates how many are open, with the sigmoid's
        gradient. For hard-concrete gates it is the number of gates that are expected not to be 0 (Louizos et al. 2018,
        arXiv:1712.01312, equation 12), `sum(sigmoid(scores - temperature * log(0.1 / 1.1)))`, which the expected L1
        norm never exceeds. Summed in float32 for half types, and returned so; else in the scores' dtype.
        """
        if self.kind == "hard_concrete":
            return torch.sigmoid(self._scores() - self._temperature * math.log(-_LOW / _HIGH)).sum()
        return self._gate(sampled=False).sum()

    def _scores(self) -> Tensor:
        return self.scores.float() if self.scores.dtype in _HALF else self.scores

    def _gate(self, sampled: bool) -> Tensor:
        """The gates in the precision that they are computed in."""
        scores = self._scores()
        if self.kind == "hard_concrete":
            if sampled:
                noise = torch.rand_like(scores, requires_grad=False)
                soft = torch.sigmoid((torch.logit(noise) + scores) / self._temperature)
            else:
                soft = torch.sigmoid(scores)
            return (soft * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        soft = torch.sigmoid(scores / self._temperature)
        if self.kind == "sigmoid":
            return soft
        # The difference is exactly 0: a value of 0 or 1, with the slope of the sigmoid.
        return (scores.detach() > 0).to(soft.dtype) + (soft - soft.detach())

    def _scaled(self) -> Tensor:
        """Scores whose plain sigmoid is the gate."""
        return self.scores if self._temperature == 1 else self.scores / self._temperature

    def reset_parameters(self) -> None:
        """Draws weight and bias as the plain layer does, and sets all scores to `initial_score`."""
        super().reset_parameters()  # type: ignore[misc]
        if "scores" in self._parameters:  # not yet made while the plain layer's constructor runs
            nn.init.constant_(self.scores, self.initial_score)

    def extra_repr(self) -> str:
        """The plain layer's, with kind and temperature of the gates."""
        return f"{super().extra_repr()}, kind={self.kind}, temperature={self._temperature:.4g}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _KEY] = torch.tensor(self._temperature, dtype=torch.float64, device="cpu")

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
        key = prefix + _KEY
        saved = state_dict.get(key)
        temperature = self._temperature
        if saved is not None and not getattr(saved, "is_meta", False):
            try:
                temperature = _loaded(saved)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{key}: {error}")
                return  # nothing of this layer is loaded
        errors = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        scores = prefix + "scores"
        # A plain layer's state keeps the scores; on meta there are none to keep.
        if scores in missing_keys and not self.scores.is_meta:
            missing_keys.remove(scores)
        if len(error_msgs) == errors:
            self._temperature = temperature


def _loaded(saved: object) -> float:
    if isinstance(saved, Tensor):
        if saved.numel() != 1:
            raise ValueError(f"temperature must be one number, got {describe(saved)}")
        saved = saved.item()
    return positive(saved, "temperature")
