"""Registers, stack and spills of every CUDA kernel, as the device compiler said when it built them.

    python tests/kernel_resources.py           # the table of build/ptxas.log, and what differs from the one kept
    python tests/kernel_resources.py --write   # keep it: csrc/cuda/resources.json

`make wheel` leaves build/ptxas.log. Shared memory of the large kernels is asked for at launch:
csrc/tests/test_cuda_layout.cpp has it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build/ptxas.log"
KEPT = ROOT / "csrc/cuda/resources.json"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


def _readable(names: list[str]) -> list[str]:
    """Demangled names without namespaces, arguments and what makes a name its file's own."""
    found = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    result = []
    for name in found.stdout.splitlines():
        name = re.sub(r"_GLOBAL__N__\w+|\(anonymous namespace\)|_NV_ANON_NAMESPACE", "", name)
        name = name.removeprefix("void ").replace("maskfuse::cuda::", "").replace("maskfuse::", "").replace("::", "")
        name = re.sub(r"\((int|bool)\)", "", name)
        result.append(re.sub(r"\([^()]*(\([^()]*\)[^()]*)*\)$", "", name))
    return result


def table(log: str) -> dict[str, dict[str, list[int]]]:
    """{kernel: {architecture: [registers, bytes of stack, bytes spilled]}} of a compiler's log."""
    rows: list[tuple[str, str, list[int]]] = []
    name = architecture = ""
    stack = [0, 0, 0]
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, architecture = entry.groups()
        elif found := _STACK.search(line):
            stack = [int(n) for n in found.groups()]
        elif (used := _USED.search(line)) and name:
            rows.append((name, architecture, [int(used[1]), stack[0], stack[1] + stack[2]]))
            name = ""
    result: dict[str, dict[str, list[int]]] = {}
    for readable, (_, architecture, figures) in zip(_readable([row[0] for row in rows]), rows, strict=True):
        result.setdefault(readable, {})[architecture] = figures
    return {kernel: dict(sorted(result[kernel].items())) for kernel in sorted(result)}


def differences(found: dict, kept: dict) -> list[str]:
    """What a table has otherwise than the one kept, a line each."""
    lines = []
    for kernel in sorted({*found, *kept}):
        if found.get(kernel) != kept.get(kernel):
            lines.append(f"{kernel}: {found.get(kernel)}, kept {kept.get(kernel)}")
    return lines


def main() -> int:
    """Prints or keeps the table; 1 where it is not the one kept."""
    found = table(LOG.read_text())
    if "--write" in sys.argv[1:]:
        rows = ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(figures)}" for kernel, figures in found.items())
        KEPT.write_text("{\n" + rows + "\n}\n")
        return 0
    for kernel, figures in found.items():
        print(kernel, figures)
    changed = differences(found, json.loads(KEPT.read_text()))
    print("\n".join(changed), file=sys.stderr)
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
