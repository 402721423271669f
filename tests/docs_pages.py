"""The Markdown pages of the repository and the code in them, for the tests of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of Python: from which line on, what it prints and what it raises, where the page says so."""

    code: str
    line: int
    output: str | None
    raises: str | None


def pages() -> list[Path]:
    """What people read: README.md, CONTRIBUTING.md and docs/; none where only the tests were copied."""
    if not DOCS.is_dir():
        return []
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    """A page's name in a test's."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The page's blocks of Python in order."""
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    found = []
    for fence, after in zip_longest(fences, fences[1:]):
        if fence[1] != "python":
            continue
        shown = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
        raises = re.match(r"# raises: (\w+)\n", fence[2])
        line = text.count("\n", 0, fence.start(2))
        found.append(Block(fence[2], line, after[2] if shown and after else None, raises and raises[1]))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^(```+|:::+).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
