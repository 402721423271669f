"""Modules of bench/, for tests of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench"


def imported(monkeypatch, name):
    """Yields a module; then takes it back with all that it imported from there, whose names are as plain as `run`."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module(name)
    for one in set(sys.modules) - before:
        if str(getattr(sys.modules[one], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[one]
