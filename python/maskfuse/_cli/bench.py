"""`bench`: figures of this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .._bench import run as measurement
from .._bench import text


def _check_output(path: Path) -> None:
    """Before a minute is spent on what cannot be kept."""
    if path.is_dir():
        raise IsADirectoryError(f"--output {path} is a folder, not a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}")
    with path.open("a"):
        pass


def run(arguments: argparse.Namespace) -> int:
    """Measures, and prints a table or JSON; raises OSError or ValueError where that cannot be."""
    made = arguments.output is not None and not arguments.output.exists()
    if arguments.output is not None:
        _check_output(arguments.output)
    try:
        result = measurement.measure(arguments.device, arguments.threads, arguments.quick, text.progress)
    except BaseException:
        if made:
            arguments.output.unlink(missing_ok=True)
        raise
    as_json = json.dumps(result, indent=2)
    if arguments.output is not None:
        arguments.output.write_text(as_json + "\n")
    if arguments.json:
        print(as_json)
    else:
        text.show(result)
    return 0
