"""Pictures of docs/: sound XML, with words that lie inside and apart, by the metrics of a wide font (DejaVu Sans)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

textpath = pytest.importorskip("matplotlib.textpath")
ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = ROOT / "docs/_ext"
pytestmark = pytest.mark.skipif(not EXTENSIONS.exists(), reason="needs the repository around it")


@pytest.fixture
def drawings(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    import drawings

    return drawings


def words(svg: str) -> list[tuple[str, float, float, float, float]]:
    """Each word with its left, top, right and bottom."""
    found = []
    for word in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        size, x, y = (float(word.attrib[name]) for name in ("font-size", "x", "y"))
        family = "DejaVu Sans Mono" if word.attrib["font-family"] == "monospace" else "DejaVu Sans"
        extents = textpath.TextPath((0, 0), word.text, size=size, prop={"family": family}, usetex=False).get_extents()
        left = x - extents.width * {"start": 0, "middle": 0.5, "end": 1}[word.attrib["text-anchor"]]
        found.append((word.text, left, y - extents.ymax, left + extents.width, y - extents.ymin))
    return found


def apart(one, other) -> bool:
    return one[3] <= other[1] or other[3] <= one[1] or one[4] <= other[2] or other[4] <= one[2]


def test_words_lie_inside_and_apart(drawings):
    for name, draw in drawings.ALL.items():
        picture = draw()
        found = words(picture.svg(name))
        assert len(found) > 5, name
        for text, left, top, right, bottom in found:
            assert left >= 0 and right <= picture.width and top >= 0 and bottom <= picture.height, (name, text)
        assert not [(one, other) for one, other in combinations(found, 2) if not apart(one, other)], name
