"""`Policy`: which layers `convert` masks, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn

from .mask import Mask
from .nn._masked import MaskedLayer
from .nn._numbers import number
from .nn.masked_conv2d import MaskedConv2d
from .nn.masked_linear import MaskedLinear

Names: TypeAlias = "str | Iterable[str] | Callable[[str, nn.Module], bool]"
Masks: TypeAlias = "Mask | Tensor | Callable[[str, nn.Module], Mask | Tensor | None]"

TWINS: dict[type[nn.Module], type[MaskedLayer]] = {nn.Linear: MaskedLinear, nn.Conv2d: MaskedConv2d}


@dataclass(frozen=True, eq=False)
class Policy:
    """Which layers `convert` masks, and how. A layer has to meet all that is given.

    Args:
        types: of `nn.Linear` and `nn.Conv2d`; subclasses of them are not meant.
        names: patterns as in `fnmatch` ("encoder.*"), or a function of a layer's name and the layer; None for all. A
            layer with several names is matched by any of them, and functions get the first.
        exclude: the same, for layers to leave alone; None for none.
        min_weights: layers with fewer weights are left alone.
        density: share of each layer's weights that stays active, those of the largest magnitude.
        mask: a `Mask`, or a bool or 0/1 integer tensor, of the weight's shape, or a function of name and layer that
            gives one, or None for a layer to leave alone. With neither `mask` nor `density` nothing is masked yet.

    Raises:
        TypeError: something of another type, or another layer type than the two.
        ValueError: `density` is outside 0..1, `min_weights` is negative, or both `density` and `mask` are given.
    """

    types: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
    names: Names | None = None
    exclude: Names | None = None
    min_weights: int = 0
    density: float | None = None
    mask: Masks | None = None

    def __post_init__(self) -> None:
        types = self.types if isinstance(self.types, Iterable) else (self.types,)
        object.__setattr__(self, "types", tuple(types))
        for kind in self.types:
            if kind not in TWINS:
                raise TypeError(f"types must be of nn.Linear and nn.Conv2d, got {kind!r}")
        for argument in ("names", "exclude"):
            object.__setattr__(self, argument, _patterns(getattr(self, argument), argument))
        if isinstance(self.min_weights, bool) or not isinstance(self.min_weights, int):
            raise TypeError(f"min_weights must be an integer, got {self.min_weights!r}")
        if self.min_weights < 0:
            raise ValueError(f"min_weights must not be negative, got {self.min_weights}")
        if self.density is not None and self.mask is not None:
            raise ValueError(f"density and mask must not both be given, got density={self.density}")
        if self.density is not None and not 0 <= number(self.density, "density") <= 1:
            raise ValueError(f"density must be in 0..1, got {self.density}")
        if self.mask is not None and not isinstance(self.mask, (Mask, Tensor)) and not callable(self.mask):
            raise TypeError(f"mask must be a Mask, a tensor or a function, got {type(self.mask).__name__}")


def _patterns(selection: Any, argument: str) -> Any:
    if selection is None or callable(selection):
        return selection
    patterns = (selection,) if isinstance(selection, str) else selection
    if not isinstance(patterns, Iterable):
        raise TypeError(f"{argument} must be patterns or a function of name and layer, got {selection!r}")
    patterns = tuple(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must have patterns that are strings, got {pattern!r}")
    return patterns


def rules_of(policy: Any) -> list[Policy]:
    """What `convert` takes as a policy, as a list of which the first that matches a layer counts."""
    if policy is None:
        return [Policy()]
    if isinstance(policy, Policy):
        return [policy]
    if isinstance(policy, Mapping):
        return [_rule(pattern, value) for pattern, value in policy.items()]
    if isinstance(policy, (int, float)) and not isinstance(policy, bool):
        return [Policy(density=policy)]
    raise TypeError(f"policy must be a Policy, a dict of name patterns or a density, got {type(policy).__name__}")


def _rule(pattern: str, value: Any) -> Policy:
    if value is None or isinstance(value, (Mask, Tensor)) or callable(value):
        return Policy(names=pattern, mask=value)
    return Policy(names=pattern, density=value)


def matches(selection: Any, names: list[str], layer: nn.Module) -> bool:
    """Whether patterns or a function choose a layer of these names."""
    if callable(selection):
        return bool(selection(names[0], layer))
    return any(fnmatchcase(name, pattern) for pattern in selection for name in names)
