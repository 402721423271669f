"""Writes bench/RESULTS.md, its pictures and the README's table from bench/results/*.json.

python bench/readme.py                  # all of them
python bench/readme.py --check          # exit status 1 where they differ from what the JSON files say
python bench/readme.py --folder FOLDER  # another machine's results: RESULTS.md and pictures in that folder, no README
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import plots
from records import RESULTS, ROOT, load
from results_page import page
from summary import summary

START, END = "<!-- measured: bench/readme.py writes this -->", "<!-- /measured -->"


def with_block(text: str, lines: list[str]) -> str:
    """The README with these lines between its markers."""
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no {START} ... {END}")
    content = "\n".join([START, *lines, END])
    return pattern.sub(lambda match: content, text)


def texts(folder: Path, root: Path = ROOT) -> dict[Path, str]:
    """What each text file should hold."""
    results = load(folder)
    if not results:
        raise SystemExit(f"{folder} has no JSON files")
    own = folder == RESULTS
    at = root / "bench/RESULTS.md" if own else folder / "RESULTS.md"
    pictures = plots.pictures(results)
    shown = [
        (f"results/{name}" if own else name, what, plots.caption(data)) for name, (what, data, _) in pictures.items()
    ]
    others = sorted(str(path.relative_to(at.parent)) for path in folder.glob("*/RESULTS.md")) if own else []
    found = {at: page(results, shown, others)}
    if own:
        readme = root / "README.md"
        found[readme] = with_block(readme.read_text(), summary(results))
    return found


def differences(folder: Path, root: Path = ROOT) -> list[str]:
    """Files that are not what the results say."""
    found = [path.name for path, text in texts(folder, root).items() if not path.exists() or path.read_text() != text]
    for name, (_, data, _draw) in plots.pictures(load(folder)).items():
        if not plots.current(folder / name, data):
            found.append(name)
    return found


def write(folder: Path) -> list[Path]:
    """Writes what differs; returns what was written."""
    written = []
    for path, text in texts(folder).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            written.append(path)
    results = load(folder)
    for name, (_, data, draw) in plots.pictures(results).items():
        if not plots.current(folder / name, data):
            plots.write(folder / name, data, draw, results)
            written.append(folder / name)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="JSON files (bench/results)")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.check:
        differing = differences(folder)
        for name in differing:
            print(f"{name} is not what the results say: python bench/readme.py writes it anew", file=sys.stderr)
        return int(bool(differing))
    for path in write(folder):
        print(f"{path} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
