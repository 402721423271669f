"""What the build promises: complete source lists, no code that needs a better CPU where it may be shared."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import maskfuse
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc/sources.json"
in_repository = pytest.mark.skipif(not SOURCES.exists(), reason="needs the repository around it")


@in_repository
def test_source_lists_are_complete():
    lists = json.loads(SOURCES.read_text())
    listed = {name for level in lists["cpu"].values() for name in level["sources"]}
    listed |= {*lists["torch"], *lists["cuda"], *lists["simt"], lists["cuda_stub"]}
    folders = ["cpu", "torch", "cuda", "simt"]
    there = {
        str(path.relative_to(ROOT / "csrc"))
        for folder in folders
        for path in (ROOT / "csrc" / folder).iterdir()
        if path.suffix in {".cpp", ".cu"}
    }
    assert listed == there


@in_repository
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_isa_objects_share_nothing(level):
    """A weak symbol compiled with AVX could be the copy that the linker keeps, and crash an older CPU."""
    objects = sorted(ROOT.glob(f"build/temp.*/csrc/cpu/*_{level}.o"))
    if not objects:
        pytest.skip("no objects of this level here: another architecture, or installed from a wheel")
    count = 0
    for path in objects:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
        weak = [line for line in symbols if line[17:18] in "WVu"]
        exported = [line[19:].partition("(")[0] for line in symbols if line[17:18] == "T"]
        assert not weak and len(exported) == 1 and exported[0].endswith(f"_{level}")
        count += len(symbols)
    assert count > 50 * len(objects)


def library(stem):
    return next(iter(Path(maskfuse.__file__).parent.glob(f"{stem}*.so")), None)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("stem", ["_C.", "_C_cuda."])
def test_libraries_use_neither_cpython_nor_aten(stem):
    path = library(stem)
    if path is None:
        pytest.skip(f"{stem}so is not built here")
    symbols = subprocess.run(["nm", "-DC", path], capture_output=True, text=True, check=True).stdout
    wanted = [line.split(" U ")[1] for line in symbols.splitlines() if " U " in line]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in wanted)
    foreign = [name for name in wanted if name.startswith(("Py", "_Py", "at::", "c10::", "torch::"))]
    assert not foreign


@pytest.mark.skipif(shutil.which("strings") is None, reason="needs strings")
@in_repository
def test_libraries_name_no_path_of_the_machine():
    for path in Path(maskfuse.__file__).parent.glob("*.so"):
        text = subprocess.run(["strings", path], capture_output=True, text=True, check=True).stdout
        assert str(ROOT) not in text, path.name


def test_cuda_library_loads_where_torch_has_cuda():
    info = maskfuse.build_info()["cuda"]
    if torch.version.cuda is None:
        assert not info["loaded"] and "has no CUDA" in info["reason"]
    elif library("_C_cuda.") is None:
        assert not info["loaded"] and "was not built" in info["reason"]
    else:
        assert info["loaded"], info["reason"]
        assert torch._C._dispatch_has_kernel_for_dispatch_key("maskfuse::mask_pack", "CUDA")
        assert "sm_90a" in info["architectures"]
