"""examples/cpp: built against the installed torch, it calls the library's ops without Python."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from maskfuse._library import _file

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples/cpp"
HAS_COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0]) is not None
CMAKE = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
needs_tools = pytest.mark.skipif(not HAS_COMPILER or CMAKE is None, reason="needs cmake and a C++ compiler")
pytestmark = needs_tools
LIBRARY = str(_file("_C"))


def cmake(*arguments):
    return subprocess.run([CMAKE, *map(str, arguments)], capture_output=True, text=True, timeout=600)


@functools.cache
def program():
    """The example's executable, built once; a later run of the tests rebuilds what changed."""
    folder = ROOT / "build/cmake/example"
    made = cmake("-S", SOURCE, "-B", folder, f"-DTORCH_ROOT={Path(torch.__file__).parent}")
    assert made.returncode == 0, made.stdout + made.stderr
    built = cmake("--build", folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr
    return folder / "masked_linear"


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [program(), *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment
    )


def test_it_computes_what_torch_does():
    process = run(LIBRARY)
    assert process.returncode == 0, process.stderr
    first, second = process.stdout.splitlines()
    share = float(re.fullmatch(r"masked_linear: 32 x 512, (.*)% of the weights active", first)[1])
    assert 9 < share < 11
    # Sums of about 26 products of normal numbers, in another order.
    assert 0 < float(second.removeprefix("largest difference from at::linear on the masked weight: ")) < 2e-5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, r"usage: .*masked_linear LIBRARY \[MODEL.pt2 ROWS COLUMNS\]"),
        ([LIBRARY, "model.pt2"], 2, "usage: "),
        (["nowhere.so"], 1, r"cannot load the library: nowhere.so: cannot open shared object file"),
        ([__file__], 1, r"cannot load the library: .*test_cpp_example.py: "),
        (
            [Path(torch.__file__).parent / "lib/libtorch_global_deps.so"],
            1,
            r"libtorch_global_deps.so has no op maskfuse::mask_pack: expected maskfuse's _C.abi3.so",
        ),
        ([LIBRARY, "nowhere.pt2", 3, 4], 1, "cannot run the model nowhere.pt2: "),
    ],
    ids=["nothing", "half", "no file", "no library", "another library", "no model"],
)
def test_what_it_refuses(arguments, code, message):
    process = run(*arguments)
    assert process.returncode == code and re.search(message, process.stderr), process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("root", ["", "/nowhere"])
def test_without_torch_cmake_says_what_is_missing(root, tmp_path):
    made = cmake("-S", SOURCE, "-B", tmp_path, f"-DTORCH_ROOT={root}")
    assert made.returncode != 0 and "has no include/ATen/ATen.h" in made.stderr and "torch.__path__" in made.stderr
