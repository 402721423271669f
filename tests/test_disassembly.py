"""What nvcc made of the Hopper kernels: tensor core instructions of warp groups, bulk copies, nothing serialized.

Reads the CUDA library of dist/*.whl (`make wheel`) with the cuobjdump that Triton's package carries.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from kernel_resources import LOG, ROOT

# The kernels, by type, pass and tile, and what each is made of.
KERNELS = 2 * 3 * 2
WANTED = {"HGMMA": "wgmma", "UTMALDG": "bulk copies", "SYNCS": "barriers in shared memory", "STSM": "stmatrix"}
MASKED = {"LDSM": "ldmatrix", "PRMT": "masks of pairs"}


def _cuobjdump() -> Path | None:
    found = importlib.util.find_spec("triton")
    for folder in (found and found.submodule_search_locations) or []:
        tool = Path(folder, "backends/nvidia/bin/cuobjdump")
        if tool.exists():
            return tool
    return None


def _library(folder: Path) -> Path | None:
    """The CUDA library of the wheel, unpacked."""
    for wheel in sorted((ROOT / "dist").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if "_C_cuda" in name:
                    return Path(packed.extract(name, folder))
    return None


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """{mangled name of a kernel: its instructions} for sm_90a."""
    tool, library = _cuobjdump(), _library(tmp_path_factory.mktemp("wheel"))
    if tool is None:
        pytest.skip("needs cuobjdump (Triton's package)")
    if library is None:
        pytest.skip("needs dist/*.whl with the CUDA library (make wheel with nvcc)")
    command = [tool, "--dump-sass", "--gpu-architecture", "sm_90a", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*Function : (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_hopper_kernels_are_what_they_say(functions):
    kernels = {name: code for name, code in functions.items() if "product_sm90_kernel" in name}
    assert len(kernels) == KERNELS
    for name, code in kernels.items():
        # Pass::weight_grad masks its result, not an operand.
        wanted = WANTED if "PassE2" in name else WANTED | MASKED
        for instruction, what in wanted.items():
            assert re.search(rf"\b{instruction}\b", code), f"{name} has no {what}"
        assert re.search(r"HGMMA\.64x128x16\.F32" + (r"\.BF16" if "Bf16" in name else r"\b(?!\.BF16)"), code), name
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} keeps registers in memory"


def test_portable_kernels_are_what_they_say(functions):
    kernels = [code for name, code in functions.items() if "14product_kernel" in name]
    assert kernels
    for code in kernels:
        assert all(re.search(rf"\b{instruction}\b", code) for instruction in ("HMMA", "LDSM", "LDGSTS"))


@pytest.mark.skipif(not LOG.exists(), reason="needs build/ptxas.log (make wheel with nvcc)")
def test_no_product_waits_for_the_one_before():
    serialized = [line for line in LOG.read_text().splitlines() if "serialized" in line]
    assert not serialized, "\n".join(serialized)
