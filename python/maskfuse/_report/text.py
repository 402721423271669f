"""A report as text, plain or by rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .rows import LayerReport, Totals

if TYPE_CHECKING:
    from .report import Report

# Headings, and which columns are set to the right.
_COLUMNS = {
    "layer": False,
    "kind": False,
    "shape": True,
    "dtype": False,
    "structure": False,
    "density": True,
    "active": True,
    "bytes": True,
    "beside": True,
    "kernel": False,
}


def rows_of(count: int) -> str:
    """A number of rows."""
    return f"{count} row{'s' if count != 1 else ''}"


def printable(text: str) -> str:
    """With escapes for what would break a line or steer a terminal: names in a file are whoever's wrote it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def binary(count: int) -> str:
    """Bytes with a unit of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def decimal(count: int) -> str:
    """A large number with a letter for its thousands."""
    value = float(count)
    for letter in ("", " K", " M", " G"):
        if abs(value) < 1000:
            return f"{value:.0f}" if not letter else f"{value:.3g}{letter}"
        value /= 1000
    return f"{value:.3g} T"


def cells(row: LayerReport) -> list[str]:
    """A row of the table."""
    notes = [f"= {', '.join(row.also)}"] if row.also else []
    notes += [f"weight of {row.shares}"] if row.shares else []
    notes += ["retained"] if row.retained else []
    notes += [f"{row.frozen:.0%} frozen"] if row.frozen is not None else []
    notes += ["not trained"] if row.trained == 0 and row.active > 0 and row.frozen is None else []
    return [
        printable(row.name + (f" ({'; '.join(notes)})" if notes else "")),
        row.kind,
        "x".join(map(str, row.shape)),
        row.dtype,
        row.structure,
        f"{row.density:.2%}",
        f"{row.active:,}",
        binary(row.bytes.weight),
        binary(row.bytes.total - row.bytes.weight) if row.masked else "",
        row.kernel or "",
    ]


def plain_table(report: Report) -> list[str]:
    """Lines, columns as wide as they have to be."""
    if not report.layers:
        return []
    head = list(_COLUMNS)
    rows = [head, *map(cells, report.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = list(_COLUMNS.values())
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def summary(report: Report) -> list[str]:
    """A line for each sum, mention and note."""
    t = report.totals
    lines = [f"parameters   {t.parameters:,}, {t.active:,} of them active"]
    if t.masked_weights:
        lines.append(f"masked       {t.masked_weights:,} weights, {t.masked_active:,} active ({t.density:.2%})")
    lines.append(f"bytes        {binary(t.dense_bytes)} dense, {binary(t.bytes)} now{_grown(t)}")
    if t.flop is not None and t.dense_flop is not None:
        share = f" ({t.flop / t.dense_flop:.2%})" if t.dense_flop else ""
        lines.append(
            f"FLOP         {decimal(t.dense_flop)} dense, {decimal(t.flop)} of active weights{share}, "
            "in linear layers and convolutions"
        )
    lines += [f"{m.kind:<12} {m.name}{': ' + m.detail if m.detail else ''}" for m in report.mentions]
    return [printable(line) for line in lines + [f"note: {note}" for note in report.notes]]


def _grown(t: Totals) -> str:
    return f" ({t.bytes / t.dense_bytes - 1:+.1%})" if t.dense_bytes else ""


# What a narrow terminal does not show, the first to go first; the layer's name and its density always stay.
_DISPENSABLE = ("dtype", "active", "kind", "beside", "bytes", "shape", "kernel", "structure")


def fitting(report: Report, width: int) -> list[str]:
    """Headings of the columns that fit into so many characters, with borders, and 24 of each layer's name."""
    rows = [list(_COLUMNS), *map(cells, report.layers)]
    widths = {name: max(len(row[i]) for row in rows) for i, name in enumerate(_COLUMNS)}
    widths["layer"] = min(widths["layer"], 24)
    kept = list(_COLUMNS)
    for name in _DISPENSABLE:
        if sum(widths[column] + 3 for column in kept) + 1 <= width:
            break
        kept.remove(name)
    return kept


def rich_table(report: Report, width: int) -> Any:
    """A table by rich that fits into so many characters, with the sums below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    below = [Text(line, style="dim" if line.startswith("note: ") else "") for line in summary(report)]
    if not report.layers:
        return Group(Text(printable(report.model), style="bold"), *below)
    table = Table(title=Text(printable(report.model)), title_style="bold")
    kept = fitting(report, width)
    for name in kept:
        table.add_column(name, justify="right" if _COLUMNS[name] else "left", overflow="fold", no_wrap=name != "layer")
    for row in report.layers:
        shown = [Text(cell) for name, cell in zip(_COLUMNS, cells(row), strict=True) if name in kept]
        table.add_row(*shown, style="" if row.masked else "dim")  # Text, not markup: names may have brackets
    return Group(table, *below)
