"""The file of `save_compressed`: tensors, an index of what they are, and a checksum of both, as safetensors."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "maskfuse", "1"


class BadFile(Exception):
    """What is wrong with a file, without its path."""


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "compressed checkpoints need the package safetensors: pip install maskfuse[checkpoint]"
        ) from error
    return safetensors


def write(path: Path, tensors: dict[str, Tensor], index: dict[str, Any]) -> None:
    """Writes a file beside `path` and renames it, so that it appears whole or not at all.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a tensor of a dtype that the format has not.
        OSError: the file cannot be written.
    """
    save_file = _safetensors().torch.save_file
    metadata = {"format": FORMAT, "version": VERSION, "index": json.dumps(index)}
    metadata["crc32"] = str(_checksum(metadata, tensors))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            save_file(tensors, beside, metadata)
        except OSError:
            raise
        except Exception as error:  # of the library, whichever it has
            raise ValueError(f"{path} cannot be written: {type(error).__name__}: {error}") from error
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, in its memory, and its index.

    Raises:
        ImportError: safetensors is not installed.
        BadFile: no such file's content, or it is not what was written.
        OSError: there is no such file, or it cannot be read.
    """
    safe_open = _safetensors().safe_open
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # of the library, whichever it has for what is wrong
        raise BadFile(f"no safetensors file, or damaged: {type(error).__name__}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise BadFile(f"must be written by maskfuse.save_compressed, got format {metadata.get('format')!r}")
    if metadata.get("version") != VERSION:
        raise BadFile(f"must be of version {VERSION}, got {metadata.get('version')!r}")
    if "index" not in metadata or metadata.get("crc32") != str(_checksum(metadata, tensors)):
        raise BadFile("damaged: its checksum is not that of what it holds")
    try:
        index = json.loads(metadata["index"])
        _check(index, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadFile(f"its index is corrupt: {type(error).__name__}: {error}") from error
    return tensors, index


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for key in ("format", "version", "index"):
        crc = zlib.crc32(metadata[key].encode(), crc)
    for key in sorted(tensors):
        t = tensors[key]
        crc = zlib.crc32(f"{key} {t.dtype} {list(t.shape)}".encode(), crc)
        if t.numel():
            crc = zlib.crc32(t.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _check(index: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises unless the index is of these tensors: what a checksum cannot say of a file that somebody made."""
    keys, masked, same = index["keys"], index["masked"], index["same"]
    if sorted(keys) != sorted([*tensors, *same]) or not set(same.values()) <= set(tensors):
        raise ValueError("its keys are not those of its tensors")
    for prefix, one in masked.items():
        name, bits, shape = one["name"], prefix + "mask_bits", one["shape"]
        if name not in ("weight", "values") or prefix + name not in keys or bits not in keys:
            raise ValueError(f"{bits!r} has no weight")
        if not shape or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
            raise ValueError(f"{prefix + name!r} has shape {shape}")
        if (prefix + name in same) != (bits in same):
            raise ValueError(f"{bits!r} and {prefix + name!r} are not shared alike")
        if prefix + name in same:
            first = same[bits].removesuffix("mask_bits")
            if masked[first]["name"] != name or same[prefix + name] != first + name or masked[first] != one:
                raise ValueError(f"{bits!r} is shared with no mask")
