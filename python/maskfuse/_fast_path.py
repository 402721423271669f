"""Torch's transformer layers that read their linear layers' weights in eval mode instead of calling them."""

from __future__ import annotations

from torch import nn

from .nn._masked import MaskedLayer

# Where a parent keeps what it had before: copies and pickles of it carry that.
_KEPT = "_maskfuse_fast_path"


def set_fast_paths(model: nn.Module) -> None:
    """Turns the fast paths off over masked layers, and on again where they were and no masked layer is left."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _set(module, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder):
            # Nested tensors are made for the layers' fast path, and nothing else takes them.
            _set(module, "use_nested_tensor", False)


def _set(parent: nn.Module, name: str, off: int) -> None:
    masked = any(isinstance(module, MaskedLayer) for module in parent.modules())
    if masked and _KEPT not in parent.__dict__ and hasattr(parent, name):
        setattr(parent, _KEPT, getattr(parent, name))
        setattr(parent, name, off)
    elif not masked and _KEPT in parent.__dict__:
        setattr(parent, name, getattr(parent, _KEPT))
        delattr(parent, _KEPT)
