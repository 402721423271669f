"""`Report`: rows, sums and notes about a model, as text, a rich table, JSON or a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rows import LayerReport, Mention, Totals
from .text import plain_table, printable, rich_table, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Report:
    """What `maskfuse.report` found.

    `print(report)` is a plain table; `rich.print(report)`, or a rich console's `print`, a coloured one.

    Attributes:
        model: the type's name.
        layers: a row a layer.
        mentions: modules that choose what is computed, in no row.
        totals: sums over all layers: weights, bytes, operations.
        notes: what a reader should know of the numbers.
    """

    model: str
    layers: tuple[LayerReport, ...]
    mentions: tuple[Mention, ...]
    totals: Totals
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Report({self.model}, {len(self.layers)} layers, density {self.totals.density:.4g})"

    def __str__(self) -> str:
        """A table for a terminal, a line for each sum and note."""
        return "\n".join([printable(self.model), *plain_table(self), *summary(self)])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """What rich prints. Called by rich alone, which is imported then."""
        yield rich_table(self, options.max_width)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "model": self.model,
            "layers": [row.as_dict() for row in self.layers],
            "mentions": [asdict(mention) for mention in self.mentions],
            "totals": asdict(self.totals) | {"density": self.totals.density},
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The JSON text of `as_dict()`.

        Args:
            indent: spaces a level; None for a single line.
        """
        return json.dumps(self.as_dict(), indent=indent)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A picture: bars of the density of each layer, and each mask as an image; returns matplotlib's figure.

        Images have at most 64 x 64 cells, rows are outputs; how bright a cell is says how dense it is, against the
        densest one of its layer.

        Args:
            path: where it is written, in the format of its suffix; None to write nothing.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no layer has a mask, or `path` has no suffix, or one of no format that matplotlib knows.
            OSError: `path` cannot be written.
        """
        from .picture import picture

        if path is not None and not Path(path).suffix:  # matplotlib would write to another path
            raise ValueError(f"path must have a suffix that says the format, as masks.png has, got {str(path)!r}")
        figure = picture(self)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure
