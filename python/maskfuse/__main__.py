"""`python -m maskfuse {info, self-test, demo}`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import build_info, self_test


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
    demo = commands.add_parser("demo", help="train, mask and fine-tune on handwritten digits, and measure")
    demo.add_argument("--output", type=Path, default=Path("out"), help="folder for the plot and the JSON (out)")
    demo.add_argument("--json", action="store_true", help="print JSON instead of the table")
    demo.set_defaults(function=_demo)
    arguments = parser.parse_args(argv)
    return int(arguments.function(arguments))


if __name__ == "__main__":
    sys.exit(main())
