"""`CompactSequential`: masked layers in a row that hand on only the channels which the next one reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._chains import ChainedLayer, chains_of, hooked, run_chain
from ._masked import MaskedLayer


class CompactSequential(nn.Sequential):
    """An `nn.Sequential` in which masked layers compute only the output channels that the next masked layer reads.

    Where a `MaskedConv2d` follows a `MaskedConv2d`, or a `MaskedLinear` a `MaskedLinear`, with nothing but activations
    and norms between them, the channels that the second one masks altogether are never made: the first one runs on the
    rows of its weight that are read, the norm on their parameters and statistics, the second one on its columns.
    Nothing is scattered and gathered between them. A dead channel of the first that the second does read (it
    holds the activation of a bias) is computed like any other.

    Numbers and gradients are the plain `nn.Sequential`'s, up to the order of sums; so are parameters, buffers,
    `state_dict` and the running statistics of a norm in training, for channels that are not computed too. The weights
    that are needed are gathered from the layers' parameters in every call, so nothing can be stale. `Dropout` draws
    for the channels that are there, so that its random numbers are others.

    Between two layers there may be elementwise activations, `nn.Dropout`, `nn.Identity`, `nn.BatchNorm2d` behind
    convolutions and `nn.BatchNorm1d` behind linear layers of two-dimensional inputs, and behind convolutions pooling
    and `nn.Dropout2d`. A norm that updates running statistics must come directly behind its masked layer; channels that
    the layer does compute something for are then all computed. Around anything else (other modules, subclasses,
    convolutions in groups, modules with hooks, an empty input, traced code) modules run as in `nn.Sequential`.

    The masks' structure is looked up when a mask is new, so `set_mask` is noticed in the next call.

    Args:
        *args: modules, or one ordered dict of them, as in `nn.Sequential`.

    Raises:
        TypeError: something that is no module.
    """

    def forward(self, input: Any) -> Any:
        """What `nn.Sequential.forward` returns, and raises.

        Args:
            input: what the first module takes, `[N, C, ...]` where channels are left out, of the weights' dtype.
        """
        if torch.compiler.is_compiling():
            return super().forward(input)
        for part in self._plan():
            input = part(input) if isinstance(part, nn.Module) else run_chain(part, input)
        return input

    def _plan(self) -> list[nn.Module | list[ChainedLayer]]:
        modules = list(self)
        key = tuple((m, m.mask if isinstance(m, MaskedLayer) else m.training, hooked(m)) for m in modules)
        planned = self.__dict__.get("_planned")
        # Masks are compared by identity: they cannot change, and equality would read their bits.
        if (
            planned is None
            or len(planned[0]) != len(key)
            or any(a is not b for old, new in zip(planned[0], key, strict=True) for a, b in zip(old, new, strict=True))
        ):
            planned = (key, chains_of(modules))
            self.__dict__["_planned"] = planned
        return planned[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles find the structure again."""
        return {key: value for key, value in self.__dict__.items() if key != "_planned"}
