"""What a compressed file holds of a `state_dict`, one way and the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import describe
from ._compressed_file import BadFile
from ._mask_coding import decode, encode
from ._sharded import is_sharded
from .functional.active_weights import check_values, collect_active, expand_active
from .mask import Mask
from .nn._with_mask import KEY, LayerWithMask


def split(key: str) -> tuple[str, str]:
    """The prefix of a layer, with its dot, and the name of the entry."""
    prefix, dot, name = key.rpartition(".")
    return prefix + dot, name


def layers_of(model: nn.Module) -> dict[str, LayerWithMask]:
    """Layers with a mask by the prefix of their entries, shared ones by each."""
    return {
        f"{name}." if name else "": module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LayerWithMask)
    }


# -- writing -------------------------------------------------------------------------------------------


def _identity(t: Tensor) -> Any:
    """Equal for tensors that are the same memory read the same way."""
    return (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else None


def entries_of(source: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the file, on the host, and its index."""
    if not isinstance(source, (nn.Module, Mapping)):
        raise TypeError(f"model_or_state_dict must be an nn.Module or a state_dict, got {type(source).__name__}")
    layers = layers_of(source) if isinstance(source, nn.Module) else {}
    state: Mapping[str, Any] = source.state_dict() if isinstance(source, nn.Module) else source
    for key, value in state.items():
        _check_entry(key, value)
    tensors: dict[str, Tensor] = {}
    masked: dict[str, Any] = {}
    same: dict[str, str] = {}
    groups: dict[Any, list[tuple[str, str, Mask]]] = {}  # masked layers by the memory of their weight
    known: dict[Any, str] = {}
    for prefix, name in _masked_layers(state):
        weight, layer = state[prefix + name], layers.get(prefix)
        mask = _mask_of(prefix, state[prefix + KEY], weight, name, layer)
        coding, coded = encode(mask)
        masked[prefix] = {"name": name, "shape": list(mask.shape), "coding": coding}
        identity = _identity(weight)
        twin = next((one for one in groups.get(identity, ()) if one[1] == name and one[2] == mask), None)
        if twin is not None and identity is not None:
            same[prefix + name], same[prefix + KEY] = twin[0] + name, twin[0] + KEY
            continue
        groups.setdefault(identity, []).append((prefix, name, mask))
        host = weight.detach().cpu()
        values = host if name == "values" else collect_active(host, mask)
        tensors[prefix + name], tensors[prefix + KEY] = values.contiguous(), coded
        # Another entry of this memory can be read from it if nothing is lost.
        if name == "values" or int(host.count_nonzero()) == int(values.count_nonzero()):
            known.setdefault(identity, prefix + name)
    of_masked = {prefix + name for prefix, one in masked.items() for name in (one["name"], KEY)}
    for key, value in state.items():
        if key in of_masked:
            continue
        identity = _identity(value)
        if identity is not None and identity in known:
            same[key] = known[identity]
            continue
        known[identity] = key
        tensors[key] = value.detach().cpu().contiguous().clone()  # entries must not overlap
    return tensors, {"keys": list(state), "masked": masked, "same": same}


def _check_entry(key: str, value: Any) -> None:
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise TypeError(f"entry {key!r} must be a tensor, got {type(value).__name__}, which cannot be written")
    what = (
        "on meta"
        if value.is_meta
        else "sharded: gather it first"
        if is_sharded(value)
        else f"of layout {value.layout}"
        if value.layout != torch.strided
        else None
    )
    if what is not None:
        raise ValueError(f"entry {key!r} must have its values here and be dense, got one {what}")


def _masked_layers(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Prefix, and the name of what is kept of the weight, of each entry of bits that has that beside it."""
    found = []
    for key in state:
        prefix, name = split(key)
        kept = next((k for k in ("values", "weight") if prefix + k in state), None)
        if name == KEY and kept is not None:
            found.append((prefix, kept))
    return found


def _mask_of(prefix: str, bits: Tensor, weight: Tensor, name: str, layer: LayerWithMask | None) -> Mask:
    """The mask of a layer, on the host. Of values alone no columns are known: as many as there are bits."""
    if layer is not None:
        shape: Any = layer.mask.shape
    else:
        shape = weight.shape if name == "weight" else (bits.shape[0], 32 * bits.shape[-1]) if bits.dim() else ()
    try:
        mask = Mask.from_bits(bits.cpu(), shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"entry {prefix + KEY!r} must be the mask of {prefix + name!r}: {error}") from error
    if name == "values" and tuple(weight.shape) != (mask.active,):
        raise ValueError(f"entry {prefix + name!r} must have shape {[mask.active]}, got {describe(weight)}")
    return mask


# -- reading -------------------------------------------------------------------------------------------


class Saved:
    """What a file holds, each tensor made once: entries that were one tensor are one again.

    Raises:
        BadFile: something that is no mask, or other than its active values beside it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], index: dict[str, Any]) -> None:
        self.keys: list[str] = index["keys"]
        self.masked: dict[str, Any] = index["masked"]
        self._tensors, self._same = tensors, index["same"]
        self._made: dict[str, Tensor] = {}
        self.masks = {prefix: self._mask(prefix) for prefix in self.masked}

    def entry(self, key: str) -> Tensor:
        """An entry as it was saved."""
        source = self._same.get(key, key)
        prefix, name = split(source)
        if prefix in self.masked and name == KEY:
            return self.masks[prefix].bits
        if prefix in self.masked and name == "weight":
            return self.in_full(prefix, self.masks[prefix])
        if source not in self._made:
            self._made[source] = self._tensors[source].clone()  # the file may change under its own memory
        return self._made[source]

    def values(self, prefix: str) -> Tensor:
        """A masked layer's active values."""
        return self._tensors[self._source(prefix)].clone()

    def in_full(self, prefix: str, mask: Mask) -> Tensor:
        """A masked layer's weight."""
        source = self._source(prefix)
        if source + " in full" not in self._made:
            self._made[source + " in full"] = expand_active(self._tensors[source], mask)
        return self._made[source + " in full"]

    def _source(self, prefix: str) -> str:
        key = prefix + self.masked[prefix]["name"]
        return self._same.get(key, key)

    def _mask(self, prefix: str) -> Mask:
        one, key = self.masked[prefix], prefix + KEY
        values = self._tensors[self._source(prefix)]
        try:
            mask = decode(one["coding"], self._tensors[self._same.get(key, key)], one["shape"])
            check_values(values, mask)
        except (TypeError, ValueError) as error:
            raise BadFile(f"{key!r} is no mask of {prefix + one['name']!r}: {error}") from error
        return mask
