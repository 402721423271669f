"""`python -m maskfuse {info, self-test, bench, report, demo}`."""

from __future__ import annotations

import sys

import torch

from . import backends
from ._cli.parser import parser
from ._report.text import printable


def _check_environment() -> None:
    """Raises ValueError for variables that no command could run under."""
    try:
        torch.ops.maskfuse.cpu_level()
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    unknown = [name for name in backends.requested() or () if name not in backends.names()]
    if unknown:
        raise ValueError(f"MASKFUSE_BACKEND={','.join(unknown)}: backends are {', '.join(backends.names())}")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. What a person can mend is one line on standard error."""
    arguments = parser().parse_args(argv)
    try:
        _check_environment()
        return int(arguments.function(arguments))
    except (OSError, ValueError, ImportError) as error:
        print(f"maskfuse {arguments.command}: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"maskfuse {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
