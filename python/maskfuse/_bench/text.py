"""The table of a measurement, plain or by rich, and a bar while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .cases import Case

_COLUMNS = ("op", "shape", "mask", "dense ms", "w*m ms", "maskfuse ms", "times dense", "times w*m")
_TO_THE_RIGHT = _COLUMNS[3:]


def _times(row: dict[str, Any], name: str) -> str:
    """A ratio with its quartiles."""
    low, high = row[f"vs {name}, quartiles"]
    return f"{row[f'vs {name}']:.2f} ({low:.2f} to {high:.2f})"


def _cells(row: dict[str, Any]) -> list[str]:
    milliseconds = [f"{row[f'{name} ms']:.3f}" for name in ("dense", "w*m", "maskfuse")]
    return [row["op"], row["shape"], row["mask"], *milliseconds, _times(row, "dense"), _times(row, "w*m")]


def title(result: dict[str, Any]) -> str:
    """What the figures depend on."""
    where = result["device"] if result["device"] != "cpu" else f"{result['processor']}, {result['cpu_level']}"
    return (
        f"maskfuse {result['version']}, torch {result['torch']}, {where}, {result['threads']} threads, "
        f"{result['dtype']}"
    )


def legend(result: dict[str, Any]) -> str:
    """How to read the table."""
    slower = sum(row["vs dense"] < 1 for row in result["rows"])
    return (
        "times dense, times w*m: how many times faster maskfuse is than F.linear or F.conv2d, and than the same on "
        "weight * mask;\nmedians of rounds in which they take turns, with quartiles. Below 1 maskfuse is slower: than "
        f"dense in {slower} of {len(result['rows'])} cases."
    )


def plain(result: dict[str, Any]) -> str:
    """All of it as text."""
    lines = [list(_COLUMNS), *(_cells(row) for row in result["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    aligned = [
        "  ".join(
            cell.rjust(width) if name in _TO_THE_RIGHT else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title(result), "", *aligned, "", legend(result)])


def show(result: dict[str, Any]) -> None:
    """Prints it: by rich where that is installed and a person looks on."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(title=title(result), title_justify="left")
            for name in _COLUMNS:
                table.add_column(name, justify="right" if name in _TO_THE_RIGHT else "left")
            for row in result["rows"]:
                style = "yellow" if row["vs dense"] < 1 else ""
                table.add_row(*_cells(row), style=style)
            console = Console()
            console.print(table)
            console.print(legend(result), highlight=False)
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
