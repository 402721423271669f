"""`pack` and `unpack`: fast inference for every masked layer of a model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ._checks import check_module
from .nn._packed import PackedLayer

Model = TypeVar("Model", bound=nn.Module)


def _layers(model: nn.Module) -> list[PackedLayer]:
    check_module(model)
    return [module for module in model.modules() if isinstance(module, PackedLayer)]


def pack(model: Model) -> Model:
    """Packs the active weights of every masked or compact layer, for inference; returns the model.

    See `MaskedLinear.pack` for what drops the copies again.

    Args:
        model: any module; layers without a mask stay as they are.

    Raises:
        TypeError: `model` is no `nn.Module`.
    """
    for layer in _layers(model):
        layer.pack()
    return model


def unpack(model: Model) -> Model:
    """Drops what `pack` copied; returns the model.

    Args:
        model: any module; layers without a mask stay as they are.

    Raises:
        TypeError: `model` is no `nn.Module`.
    """
    for layer in _layers(model):
        layer.unpack()
    return model
