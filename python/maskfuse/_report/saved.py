"""A report of a file: the state dict of a model with masked layers, and no model."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._compressed_file import FORMAT, BadFile, read
from .._saved_state import Saved
from ..explain import Explanation, explain
from ..mask import Mask
from .report import Report
from .rows import Bytes, Call, LayerReport, dtype_name, nbytes, plan_bytes, shares, structure_of, totals
from .text import rows_of

_BITS, _SCORES, _TEMPERATURE = ".mask_bits", ".scores", ".temperature"
Shapes: TypeAlias = Mapping[str, Sequence[int]]


class SavedError(ValueError):
    """A file that is no state dict, or one that cannot be right."""


def report_file(path: Path, batch: int = 1) -> Report:
    """The report of a state dict that was written by `torch.save`, safetensors or `save_compressed` (`.safetensors`).

    Tensors alone are loaded (`weights_only=True`): no pickled code runs. A state dict may lie within others, as in
    `{"model": ..., "optimizer": ...}`: the first one that has mask bits, else the first that has tensors, is taken.
    Compact layers are listed where the file has their shapes, as `save_compressed` writes them.

    Args:
        path: the file.
        batch: rows, for the kernels of linear layers.

    Raises:
        OSError: the file cannot be read.
        ImportError: safetensors is not installed.
        SavedError: it is no state dict of tensors, or bits do not fit their weight.
    """
    loaded, shapes = _loaded(path)
    state = _state_of(loaded)
    if state is None:
        raise SavedError(f"{path} holds no state dict: no tensors under names")
    return report_state(state, path.name, batch, shapes)


def report_state(state: Mapping[str, Any], name: str, batch: int = 1, shapes: Shapes = MappingProxyType({})) -> Report:
    """The report of a state dict; `name` is its title, and `shapes` are those of compact layers' weights."""
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    _check_whole(tensors)
    first: dict[tuple[Any, ...], str] = {}
    rows = []
    for layer, mask, kind in _layers(tensors, shapes):
        other = shares(first, _storage(_kept(layer, kind, tensors)), layer)
        rows.append(_row(layer, mask, kind, tensors, other, batch))
    aside = (_BITS, _SCORES, _TEMPERATURE)
    gated = {row.name for row in rows if row.kind.startswith("Gated")}
    kept = {
        _storage(tensor): tensor
        for key, tensor in tensors.items()
        if not (("." + key).endswith(_BITS) or (_parent(key) in gated and ("." + key).endswith(aside)))
    }
    scores = [tensors[_key(name, "scores")] for name in gated]
    numel = sum(t.numel() for t in kept.values())
    size = sum(nbytes(t) for t in [*kept.values(), *scores])
    sums = totals(rows, numel + sum(t.numel() for t in scores), size, sum(t.numel() for t in scores), False)
    if not rows:
        notes: tuple[str, ...] = ("no layer is masked: no entry named mask_bits beside a weight",)
    else:
        notes = (f"kernels are those of linear layers, {rows_of(batch)}, on the CPU",)
        notes += ("parameters are all entries but masks and gates, buffers among them",)
    unknown = [layer for layer in _compact_layers(tensors) if layer not in shapes]
    if unknown:
        notes += (
            f"not listed: compact layers, whose shapes save_compressed alone writes: {', '.join(map(repr, unknown))}",
        )
    return Report(name, tuple(rows), (), sums, notes)


def _loaded(path: Path) -> tuple[Any, Shapes]:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    path.open("rb").close()  # an error here is the system's; below, the content's
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError, safe_open
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{path} needs safetensors ({error}): pip install 'maskfuse[checkpoint]'") from error
        try:
            with safe_open(path, framework="pt") as file:
                compressed = (file.metadata() or {}).get("format") == FORMAT
            return _compressed(path) if compressed else (load_file(path), {})
        except (SafetensorError, BadFile) as error:
            raise SavedError(f"{path} is no safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise SavedError(f"{path} is no file of torch.save") from error
        raise SavedError(
            f"{path} holds more than tensors ({refused[1]}), as a pickled module does, and nothing of it was run: "
            "torch.save(model.state_dict(), ...) writes what can be read"
        ) from error
    except Exception as error:  # torch.load raises what its readers do: RuntimeError, EOFError, OSError, KeyError
        raise SavedError(f"{path} is no file of torch.save ({type(error).__name__})") from error


def _compressed(path: Path) -> tuple[Mapping[str, Tensor], Shapes]:
    saved = Saved(*read(path))
    compact = {prefix[:-1]: one["shape"] for prefix, one in saved.masked.items() if one["name"] == "values"}
    return {key: saved.entry(key) for key in saved.keys}, compact


def _state_of(loaded: Any) -> Mapping[str, Any] | None:
    """The first state dict that has mask bits, else the first that has tensors."""
    found = list(_states(loaded))
    masked = (state for state in found if any(("." + str(key)).endswith(_BITS) for key in state))
    return next(masked, found[0] if found else None)


def _states(loaded: Any) -> Iterator[Mapping[str, Any]]:
    """Mappings that have tensors under names, outer ones first: each once, however often and deep a pickle has it."""
    seen: set[int] = set()
    left = [loaded]
    while left:
        one = left.pop()
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        seen.add(id(one))
        if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in one.items()):
            yield one
        left.extend(reversed(list(one.values())))


def _check_whole(tensors: Mapping[str, Tensor]) -> None:
    """Raises SavedError where what a mask is read from would take more memory than the file has of it, or is no plain
    tensor: a file may say of a few bytes that they are a tensor of any size."""
    for key, t in tensors.items():
        if t.is_nested:
            raise SavedError(f"{key}: must be a plain tensor, and is a nested one")
        if not ("." + key).endswith((_BITS, _SCORES)) or t.is_meta:
            continue
        if t.layout is not torch.strided or t.is_quantized or t.is_complex():
            raise SavedError(f"{key}: must be a plain tensor of real numbers, got {t.dtype} of layout {t.layout}")
        if t.numel() * t.element_size() > t.untyped_storage().nbytes():
            raise SavedError(f"{key}: has shape {list(t.shape)}, and values for a part of it")


def _compact_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    layers = [_parent(key) for key in tensors if ("." + key).endswith(_BITS)]
    return [layer for layer in layers if _key(layer, "values") in tensors and _key(layer, "weight") not in tensors]


def _layers(tensors: Mapping[str, Tensor], shapes: Shapes) -> Iterator[tuple[str, Mask, str]]:
    """Name, mask and kind of each masked or gated layer, and of compact ones whose shapes are known."""
    for key, value in tensors.items():
        layer = _parent(key)
        if value.is_meta and ("." + key).endswith((_BITS, _SCORES)):
            raise SavedError(f"{key}: must have values, and is on meta")
        if layer in shapes and ("." + key).endswith(_BITS):
            yield layer, Mask.from_bits(value, shapes[layer]), "Compact" + _twin(len(shapes[layer]))
            continue
        weight = tensors.get(_key(layer, "weight"))
        if weight is None:
            continue
        if ("." + key).endswith(_BITS):
            try:
                yield layer, Mask.from_bits(value, weight.shape), "Masked" + _twin(weight.dim())
            except (TypeError, ValueError) as error:
                raise SavedError(f"{key}: {error}") from error
        elif ("." + key).endswith(_SCORES) and _key(layer, "temperature") in tensors and value.shape == weight.shape:
            yield layer, Mask.from_dense(value > 0), "Gated" + _twin(weight.dim())  # a gate above a half, of every kind


def _twin(dimensions: int) -> str:
    return "Conv2d" if dimensions == 4 else "Linear"


def _kept(layer: str, kind: str, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors[_key(layer, "values" if kind.startswith("Compact") else "weight")]


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _key(layer: str, entry: str) -> str:
    return f"{layer}.{entry}" if layer else entry


def _storage(t: Tensor) -> tuple[Any, ...]:
    """The same for tensors that are one in memory."""
    if t.layout is not torch.strided:
        return (id(t),)
    return (t.data_ptr() if t.numel() else id(t), t.dtype, tuple(t.shape), t.stride())


def _row(name: str, mask: Mask, kind: str, tensors: Mapping[str, Tensor], other: str | None, batch: int) -> LayerReport:
    weight = _kept(name, kind, tensors)
    gated = kind.startswith("Gated")
    explained: Explanation | None = None
    if kind in ("MaskedLinear", "CompactLinear") and len(mask.shape) == 2 and weight.is_floating_point():
        explained = explain(mask, batch=batch, dtype=weight.dtype)
    scores = nbytes(tensors[_key(name, "scores")]) if gated else 0
    bits, plan = (0, 0) if gated else (nbytes(mask.bits), plan_bytes(mask))
    return LayerReport(
        name=name,
        also=(),
        kind=kind,
        shape=tuple(mask.shape),
        dtype=dtype_name(weight.dtype),
        device="cpu",
        structure="gates" if gated else structure_of(mask),
        weights=mask.numel,
        active=mask.active,
        trained=mask.active,
        bytes=Bytes(nbytes(weight), bits, plan, scores=scores),
        absent=(mask.numel - mask.active) * weight.element_size() if kind.startswith("Compact") else 0,
        shares=other,
        calls=(Call(batch=batch),) if explained is not None else (),
        kernel=None if explained is None else explained.kernels["forward"],
        backend=None if explained is None else explained.backend,
        mask=mask,
    )
