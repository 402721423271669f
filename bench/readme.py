"""Writes the README's figures from bench/results/*.json: `python bench/readme.py`."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench/results/masked_linear.json"
START, END = "<!-- measured: bench/readme.py writes this -->", "<!-- /measured -->"


def section(result: dict) -> str:
    machine = result["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    intro = (
        f"`{result['command']}`, {machine['date']}: {machine['processor']} ({machine['processors']} virtual "
        f"processors, {caches}), {machine['threads']} threads, {machine['cpu_level']}, torch {machine['torch']}, "
        "float32, random masks. How many times faster than torch, medians of alternating rounds; a shared machine, so "
        "a tenth either way is noise:"
    )
    lines = [
        *textwrap.wrap(intro, 118),
        "",
        "| out x in | density | pass | batch 1 | 8 | 64 | 512 |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {(r["out"], r["in"], r["density"], r["pass"], r["batch"]): r for r in result["rows"]}
    for out, inp, density, passes in dict.fromkeys((o, i, d, p) for o, i, d, p, _ in rows):
        cells = []
        for batch in (1, 8, 64, 512):
            row = rows.get((out, inp, density, passes, batch))
            cells.append(f"{row['vs dense']:.2f} / {row['vs w*m']:.2f}" if row else "")
        lines.append(f"| {out}x{inp} | {density:.0%} | {passes} | {' | '.join(cells)} |")
    summary = (
        "Each cell: against plain `F.linear(x, w)` / against `F.linear(x, w * m)`. Slowest forward: "
        f"{result['worst_vs_dense_at_512']:.2f} against the former at batch 512, {result['worst_vs_masked']:.2f} "
        f"against the latter at any batch; geometric mean against the latter {result['geometric_mean_vs_masked']:.2f}."
    )
    lines += ["", *textwrap.wrap(summary, 118)]
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no {START} ... {END}")
    content = f"{START}\n{section(json.loads(RESULT.read_text()))}\n{END}"
    readme.write_text(pattern.sub(lambda match: content, text))


if __name__ == "__main__":
    main()
