"""Where Triton can be tested, and code run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import HAS_TRITON, INTERPRETED

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, which runs where there is no GPU")
GPU = torch.device("cuda", 0)


def run(code: str, **environment: str) -> str:
    """What a new Python prints, in which nothing is imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
