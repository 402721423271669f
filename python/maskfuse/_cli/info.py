"""`info`: what is built, what is loaded, and why something is not."""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

import torch

from .. import backends
from ..info import build_info

# Package -> what of this one needs it.
_OPTIONAL = {
    "safetensors": "save_compressed, load_compressed, report of .safetensors files",
    "rich": "tables in colour, progress bars, the demo",
    "matplotlib": "report --plot, the demo",
    "sklearn": "the demo",
}


def found() -> dict[str, Any]:
    """`build_info()`, with backends that do not serve a device of this machine and packages that are missing, each with
    what that means."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    refused = {
        device: {
            name: reason
            for name in backends.names()
            if (reason := backends.refusal(name, torch.device(device))) is not None
        }
        for device in devices
    }
    missing = {name: f"needed by {what}" for name, what in _OPTIONAL.items() if importlib.util.find_spec(name) is None}
    return build_info() | {"not_used_on": refused, "not_installed": missing}


def _lines(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for part, entry in value.items() for line in _lines(f"{key}.{part}", entry)]
    return [(key, ", ".join(value) if isinstance(value, list) else str(value))]


def run(arguments: argparse.Namespace) -> int:
    """Prints it, one line an entry, or as JSON."""
    values = found()
    if arguments.json:
        print(json.dumps(values, indent=2))
        return 0
    lines = [line for key, value in values.items() for line in _lines(key, value)]
    width = max(len(key) for key, _ in lines)
    for key, text in lines:
        print(f"{key:<{width}} {text}")
    return 0
