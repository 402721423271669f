"""The table of a measurement, plain or by rich, and a bar while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .cases import Case

_COLUMNS = ("mask", "dense ms", "w*m ms", "maskfuse ms", "times dense", "quartiles", "times w*m")


def _cells(row: dict[str, Any]) -> list[str]:
    milliseconds = [f"{row[f'{name} ms']:.3f}" for name in ("dense", "w*m", "maskfuse")]
    low, high = row["vs dense, quartiles"]
    ratios = [f"{row['vs dense']:.2f}", f"{low:.2f} to {high:.2f}", f"{row['vs w*m']:.2f}"]
    return [row["mask"], *milliseconds, *ratios]


def _threads(result: dict[str, Any]) -> str:
    return f"{result['threads']} thread{'s' if result['threads'] != 1 else ''}"


def title(result: dict[str, Any]) -> str:
    """What the figures depend on."""
    where = result["device"] if result["device"] != "cpu" else f"{result['processor']}, {result['cpu_level']}"
    return f"maskfuse {result['version']}, torch {result['torch']}, {where}, {_threads(result)}, {result['dtype']}"


def legend(result: dict[str, Any]) -> str:
    """How to read the table."""
    slower = sum(row["vs dense"] < 1 for row in result["rows"])
    return (
        "times dense, times w*m: how many times faster maskfuse is than F.linear or\n"
        "F.conv2d, and than the same on weight * mask; medians of rounds in which they\n"
        "take turns, with quartiles. Below 1 maskfuse is slower:\nthan dense in "
        f"{slower} of {len(result['rows'])} cases."
    )


def _table(result: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Lines for a terminal of 80 columns, each with whether dense is faster: a block for each op and shape."""
    cells = [_cells(row) for row in result["rows"]]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        first, *others = line
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *right])

    yield aligned(_COLUMNS), False
    before = None
    for row, line in zip(result["rows"], cells, strict=True):
        heading = f"{row['op']}, {row['shape']}"
        if heading != before:
            yield from [("", False), (heading, False)]
            before = heading
        yield aligned(line), row["vs dense"] < 1


def plain(result: dict[str, Any]) -> str:
    """All of it as text."""
    return "\n".join([title(result), "", *(line for line, _ in _table(result)), "", legend(result)])


def show(result: dict[str, Any]) -> None:
    """Prints it; what is slower than dense in another colour, where rich is installed and a person looks on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            console = Console(highlight=False, markup=False)
            console.print(title(result), end="\n\n", soft_wrap=True)
            for line, slower in _table(result):
                console.print(line, style="yellow" if slower else None, soft_wrap=True)
            console.print(f"\n{legend(result)}")
            return
    print(plain(result))


def progress(cases: list[Case]) -> Iterator[Case]:
    """The cases, with a bar on standard error where a person looks on: rich's, or a line that counts."""
    if not sys.stderr.isatty():
        yield from cases
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        yield from _counted(cases)
        return
    yield from track(cases, "measuring", console=Console(stderr=True), transient=True)


def _counted(cases: Iterable[Case]) -> Iterator[Case]:
    listed = list(cases)
    for done, case in enumerate(listed):
        print(f"\rmeasuring {done + 1} of {len(listed)}", end="", file=sys.stderr, flush=True)
        yield case
    print(f"\r{'':<40}\r", end="", file=sys.stderr, flush=True)
