"""Fails where a text file has spaces at a line's end or no newline at its own, or any file is large."""

from __future__ import annotations

import sys
from pathlib import Path

LARGEST = 512 << 10  # bytes: what is larger is no source


def faults(path: Path) -> list[str]:
    """What is wrong with a file, one line a fault."""
    content = path.read_bytes()
    if len(content) > LARGEST:
        return [f"{path}: {len(content)} bytes, more than {LARGEST}"]
    if b"\0" in content:
        return []
    lines = content.split(b"\n")
    found = [f"{path}:{n}: space at the end of the line" for n, line in enumerate(lines, 1) if line != line.rstrip()]
    return found + [f"{path}: no newline at the end"] * (lines[-1] != b"")


if __name__ == "__main__":
    found = [fault for name in sys.argv[1:] for fault in faults(Path(name))]
    sys.exit("\n".join(found) or 0)
