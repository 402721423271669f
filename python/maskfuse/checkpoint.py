"""`save_compressed` and `load_compressed`: a model's state in which masked weights take the space of their active ones.

A safetensors file with the keys of the `state_dict`. Where a layer is masked, `weight` (or a compact layer's `values`)
is one-dimensional, the active weights row after row, and `mask_bits` is in one of the codings of `_mask_coding`. The
header's metadata has `format`, `version`, `index` (JSON: the keys in order, each masked layer's shape and coding, and
which entries are one tensor) and `crc32`, of all of that and of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._checks import check_module, describe
from ._compressed_file import BadFile, read, write
from ._saved_state import Saved, entries_of, layers_of, split
from ._sharded import is_sharded, placed_as
from .mask import Mask
from .nn._compact import CompactLayer
from .nn._masked import MaskedLayer
from .nn._with_mask import KEY, LayerWithMask

Model = TypeVar("Model", bound=nn.Module)
FileName: TypeAlias = "str | os.PathLike[str]"


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """What the model of plain layers loads: the `state_dict` with each weight in full, and without masks.

    Weights under a mask are zero, also where they are retained. Of masked and compact layers these are copies; other
    entries are those of `state_dict`.

    Args:
        model: any module.

    Raises:
        TypeError: `model` is no module.
    """
    check_module(model)
    layers = layers_of(model)
    result: dict[str, Any] = {}
    for key, value in model.state_dict().items():
        prefix, name = split(key)
        layer = layers.get(prefix)
        if isinstance(layer, CompactLayer) and name == "values":
            result[prefix + "weight"] = layer.weight.detach()
        elif isinstance(layer, MaskedLayer) and name == "weight" and not value.is_meta:
            result[key] = value.masked_fill(placed_as(~layer.mask.dense(), value), 0)
        elif layer is None or name != KEY:
            result[key] = value
    return result


def save_compressed(model_or_state_dict: nn.Module | Mapping[str, Any], path: FileName) -> None:
    """Writes a `state_dict`, of masked layers the active weights alone and the mask in at most a bit a weight.

    At a density of a tenth that is 0.12 of a float32 weight, 0.13 of a half type's. What is retained under a mask is
    not written and loads as zero. Everything else is written as it is; entries that are one tensor are written once.
    The file appears whole or not at all: it is written beside `path` and renamed.

    Args:
        model_or_state_dict: a module, or what its `state_dict()` gave. Tensors on a GPU are copied to the host.
        path: of the file, which is replaced. No ending is added.

    Raises:
        ImportError: safetensors is not installed (`pip install maskfuse[checkpoint]`).
        TypeError: no module or `state_dict`, or an entry that is no tensor (a module's extra state).
        ValueError: a tensor on meta, sharded, sparse, or of a dtype that the format has not; a mask that does not fit.
        OSError: the file cannot be written.
    """
    tensors, index = entries_of(model_or_state_dict)
    write(Path(path), tensors, index)


@overload
def load_compressed(path: FileName, model: None = None) -> dict[str, Tensor]: ...


@overload
def load_compressed(path: FileName, model: Model) -> Model: ...


def load_compressed(path: FileName, model: nn.Module | None = None) -> Any:
    """Reads what `save_compressed` wrote; returns the `state_dict` that was saved, or the model with it loaded.

    A masked layer's state loads into a masked, a compact or a plain layer of its name, and a compact layer's too;
    others need the keys that they have. The model's device and dtypes stay, as `load_state_dict` has it, which must
    not fail halfway: keys, shapes, masks and the file's checksum are looked at before anything changes. Nothing in the
    file is executed.

    Args:
        path: of the file.
        model: whose state it becomes; None for the state on the CPU, whose entries are the caller's own.

    Raises:
        ImportError: safetensors is not installed (`pip install maskfuse[checkpoint]`).
        TypeError: `model` is no module.
        ValueError: the file is truncated, damaged, of another format or version, or does not fit the model. The message
            has path and key, and the model is untouched.
        OSError: there is no such file, or it cannot be read.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module or None, got {type(model).__name__}")
    path = Path(path)
    try:
        state = _state(Saved(*read(path)), model)
        if model is None:
            return state
        _check_fits(state, model)
        model.load_state_dict(state)
    except BadFile as error:
        raise ValueError(f"{path}: {error}") from error
    except RuntimeError as error:  # of load_state_dict
        raise ValueError(f"{path} does not fit the model: {error}") from error
    return model


def _state(saved: Saved, model: nn.Module | None) -> dict[str, Tensor]:
    """The `state_dict` in the form that was saved, or in which the model's layers load."""
    if model is None:
        return {key: saved.entry(key) for key in saved.keys}
    modules = dict(model.named_modules(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for key in saved.keys:
        prefix, name = split(key)
        module = modules.get(prefix[:-1])
        if prefix not in saved.masked or name not in (KEY, saved.masked[prefix]["name"]) or module is None:
            state[key] = saved.entry(key)
            continue
        mask = _fitting(prefix, saved.masks[prefix], module)
        if name == KEY:
            if isinstance(module, LayerWithMask):
                state[key] = mask.bits
        elif isinstance(module, CompactLayer):
            state[prefix + "values"] = saved.values(prefix)
        else:
            state[prefix + "weight"] = saved.in_full(prefix, mask)
    return state


def _fitting(prefix: str, mask: Mask, module: nn.Module) -> Mask:
    """A saved mask as that of a module's weight. A compact layer's may have been saved without its shape."""
    weight = getattr(module, "mask" if isinstance(module, LayerWithMask) else "weight", None)
    shape = getattr(weight, "shape", None)
    if shape is None or mask.shape == shape:
        return mask
    if tuple(mask.shape) != (mask.bits.shape[0], 32 * mask.bits.shape[1]):
        raise BadFile(f"{prefix + KEY!r} must be of shape {list(shape)} as in the model, got {list(mask.shape)}")
    try:
        return Mask.from_bits(mask.bits, shape)
    except ValueError as error:
        raise BadFile(f"{prefix + KEY!r} does not fit the model: {error}") from error


def _check_fits(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises where `load_state_dict` would, before it changes anything. Masks fit already."""
    expected = model.state_dict()
    for what, keys in (("lacks", expected.keys() - state.keys()), ("the model lacks", state.keys() - expected.keys())):
        if keys:
            raise BadFile(f"{what} {', '.join(repr(key) for key in sorted(keys))}")
    layers = layers_of(model)
    for key, value in state.items():
        prefix, name = split(key)
        here = expected[key]
        if isinstance(here, Tensor) and (here.is_meta or is_sharded(here)):
            raise BadFile(
                f"{key!r} of the model must have its values here, and is {'on meta' if here.is_meta else 'sharded'}"
            )
        if is_lazy(here) or (prefix in layers and name in (KEY, "values")):
            continue
        if not isinstance(here, Tensor) or here.shape != value.shape:
            raise BadFile(f"{key!r} must be {describe(here)} as in the model, got {describe(value)}")


__all__ = ["dense_state_dict", "load_compressed", "save_compressed"]
