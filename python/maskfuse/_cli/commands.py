"""`self-test`, `report` and `demo`. Each raises OSError, ValueError or ImportError for what a person can mend."""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from .._report.report import Report
from .._report.saved import report_file
from .._self_test.run import self_test as run_self_test


def self_test(arguments: argparse.Namespace) -> int:
    """Every kernel against the reference; 1 where one fails."""
    result = run_self_test()
    print(json.dumps(result.as_dict(), indent=2) if arguments.json else result)
    return 0 if result.passed else 1


def report(arguments: argparse.Namespace) -> int:
    """Of a saved state dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's on how a pickle was written
        found = report_file(arguments.file, arguments.batch)
    if arguments.plot is not None:
        found.plot(arguments.plot)
    if arguments.json:
        print(found.to_json())
    else:
        _print(found)
    return 0


def _print(found: Report) -> None:
    """By rich where it is installed and a person looks on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console().print(found)
            return
    print(found)


def demo(arguments: argparse.Namespace) -> int:
    """Trains and measures, and writes a plot and JSON."""
    try:
        from ..demo import run
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"needs rich, scikit-learn and matplotlib ({error}): pip install 'maskfuse[demo]'"
        ) from error
    arguments.output.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before a minute is spent
    return run(arguments.output, json_output=arguments.json)
