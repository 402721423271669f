"""What the CUDA kernels take of a multiprocessor: the compiler's figures against those kept, and nothing spilled."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from kernel_resources import KEPT, LOG, differences, table

EXAMPLE = """\
ptxas info    : 11 bytes gmem
ptxas info    : Compiling entry function '_ZN8maskfuse4cuda4copyIfLi2EEEvPKT_Pf' for 'sm_80'
ptxas info    : Function properties for _ZN8maskfuse4cuda4copyIfLi2EEEvPKT_Pf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
"""
needs_demangler = pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")


@needs_demangler
def test_a_log_is_read():
    assert table(EXAMPLE) == {"copy<float, 2>": {"sm_80": [40, 8, 16]}}
    changed = {"copy<float, 2>": {"sm_80": [41, 8, 16]}, "gone": {}}
    assert len(differences(table(EXAMPLE), changed)) == 2
    assert not differences(table(EXAMPLE), table(EXAMPLE))


@pytest.mark.skipif(not KEPT.exists(), reason="needs the repository around it")
def test_nothing_is_spilled_where_time_goes():
    kept = json.loads(KEPT.read_text())
    assert len(kept) > 100 and all(set(figures) == {"sm_80", "sm_90a"} for figures in kept.values())
    for kernel, figures in kept.items():
        for registers, stack, spilled in figures.values():
            assert registers <= 255
            # The readable kernels may: they are there to be read, and to test the others against.
            assert kernel.startswith("naive_kernel") or (stack, spilled) == (0, 0), kernel


def compiler():
    """The release of nvcc on the path: another one allocates registers otherwise."""
    if shutil.which("nvcc") is None:
        return ""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return text.partition("release ")[2].partition(",")[0]


@needs_demangler
@pytest.mark.skipif(not LOG.exists(), reason="needs build/ptxas.log (make wheel with nvcc)")
@pytest.mark.skipif(compiler() != "13.0", reason="the table is that of nvcc 13.0")
def test_the_table_is_that_of_the_build():
    changed = differences(table(LOG.read_text()), json.loads(KEPT.read_text()))
    assert not changed, "python tests/kernel_resources.py --write keeps the new table:\n" + "\n".join(changed)
