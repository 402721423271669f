"""`python -m maskfuse {info, self-test, report, demo}`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import build_info, self_test
from ._report.report import Report
from ._report.saved import report_file


def _info(arguments: argparse.Namespace) -> int:
    info = build_info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return 0
    for key, value in info.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        for part, entry in items:
            text = ", ".join(entry) if isinstance(entry, list) else entry
            print(f"{key + ('.' + part if part else ''):<20} {text}")
    return 0


def _self_test(arguments: argparse.Namespace) -> int:
    result = self_test()
    print(json.dumps(result.as_dict(), indent=2) if arguments.json else result)
    return 0 if result.passed else 1


def _report(arguments: argparse.Namespace) -> int:
    try:
        report = report_file(arguments.file, arguments.batch)
        if arguments.plot is not None:
            report.plot(arguments.plot)
    except (OSError, ValueError, ImportError) as error:
        print(f"maskfuse report: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(report.to_json())
    else:
        _print(report)
    return 0


def _print(report: Report) -> None:
    """By rich where it is installed and a person looks on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console().print(report)
            return
    print(report)


def _batch(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from .demo import run
    except ModuleNotFoundError as error:
        print(
            f"maskfuse demo needs rich, scikit-learn and matplotlib ({error}): pip install 'maskfuse[demo]'",
            file=sys.stderr,
        )
        return 1
    return run(arguments.output, json_output=arguments.json)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m maskfuse", description="Networks with masked weights, faster.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what is built, what is loaded, and why something is not")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(function=_info)
    test = commands.add_parser("self-test", help="every kernel of this machine against plain PyTorch, once, small")
    test.add_argument("--json", action="store_true", help="print JSON instead of the table")
    test.set_defaults(function=_self_test)
    report = commands.add_parser("report", help="what is masked in a saved state dict, and what it takes")
    report.add_argument("file", type=Path, help="of torch.save(model.state_dict(), FILE), or FILE.safetensors")
    report.add_argument("--json", action="store_true", help="print JSON instead of the table")
    report.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of masks and densities (matplotlib)")
    report.add_argument("--batch", type=_batch, default=1, help="rows, for the kernels of linear layers (1)")
    report.set_defaults(function=_report)
    demo = commands.add_parser("demo", help="train, mask and fine-tune on handwritten digits, and measure")
    demo.add_argument("--output", type=Path, default=Path("out"), help="folder for the plot and the JSON (out)")
    demo.add_argument("--json", action="store_true", help="print JSON instead of the table")
    demo.set_defaults(function=_demo)
    arguments = parser.parse_args(argv)
    return int(arguments.function(arguments))


if __name__ == "__main__":
    sys.exit(main())
