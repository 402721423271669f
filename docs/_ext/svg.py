"""A picture in SVG, of cells, words and arrows, in the page's own colours: so it reads in light and in dark themes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import atan2, degrees

INK, ACTIVE, OTHER = "currentColor", "#3584d6", "#d98c2b"
CELL = 16


class Picture:
    """What was drawn so far; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.parts: list[str] = []

    def cell(self, x: float, y: float, w: float = CELL, h: float = CELL, fill: str = "", label: str = "") -> None:
        """A box, filled or not, with a word in it."""
        paint = f'fill="{fill}" fill-opacity=".8"' if fill else 'fill="none"'
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" {paint} stroke="{INK}" stroke-opacity=".35"/>'
        )
        if label:
            self.word(x + w / 2, y + h / 2 + 4, label, "middle", 11)

    def row(self, x: float, y: float, fills: Sequence[str], labels: Sequence[str] = (), w: float = CELL) -> None:
        """Cells side by side."""
        for i, fill in enumerate(fills):
            self.cell(x + i * w, y, w, CELL, fill, labels[i] if labels else "")

    def word(self, x: float, y: float, text: str, anchor: str = "start", size: int = 13, code: bool = False) -> None:
        """Text whose baseline begins, has its middle, or ends at x."""
        family = "monospace" if code else "sans-serif"
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-family="{family}" '
            f'fill="{INK}">{escape(text)}</text>'
        )

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A line with a head at its end."""
        self.parts.append(
            f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{INK}" stroke-width="1.3"/>'
            f'<path d="M-9 -4.5 L0 0 L-9 4.5 z" fill="{INK}" '
            f'transform="translate({x1} {y1}) rotate({degrees(atan2(y1 - y0, x1 - x0)):.1f})"/>'
        )

    def frame(self, x: float, y: float, w: float, h: float, colour: str = INK) -> None:
        """A thick outline around cells."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )

    def svg(self, title: str) -> str:
        """The whole picture; the title is what a screen reader says."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(self.parts)}</svg>'
        )
