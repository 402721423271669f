"""AOTInductor: a compiled package of a model with masked layers runs in a new process, and without Python."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from maskfuse import Mask
from maskfuse.nn import GatedLinear, MaskedConv2d, MaskedLinear
from test_cpp_example import HAS_COMPILER, LIBRARY, needs_tools
from test_cpp_example import run as run_program
from torch import nn

pytestmark = [
    pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
ROWS, COLUMNS = 5, 80


class Model(nn.Module):
    """Layers with a plan of their mask, and without: small masks have none."""

    def __init__(self):
        super().__init__()
        self.planned = MaskedLinear(COLUMNS, 100, mask=Mask.random((100, COLUMNS), 0.2))
        self.gated = GatedLinear(100, 48)
        self.conv = MaskedConv2d(3, 4, 3, padding=1, mask=Mask.random((4, 3, 3, 3), 0.5))
        self.head = MaskedLinear(64, 7, mask=Mask.random((7, 64), 0.5))
        assert self.planned.mask.plan and not self.conv.mask.plan and not self.head.mask.plan

    def forward(self, x):
        x = torch.relu(self.gated(torch.relu(self.planned(x))))
        return self.head(self.conv(x.unflatten(1, (3, 4, 4))).flatten(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def package(model, tmp_path_factory):
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(4, COLUMNS),), dynamic_shapes=({0: batch},))
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    return torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def inputs(rows):
    return torch.linspace(-1, 1, rows * COLUMNS).reshape(rows, COLUMNS)


RUN = """
import sys
import torch
if sys.argv[2]:
    import maskfuse
model = torch._inductor.aoti_load_package(sys.argv[1])
torch.save([model(x) for x in torch.load(sys.argv[3])], sys.argv[4])
"""


def run_in_new_process(package, batches, folder, imports=True):
    torch.save(batches, folder / "in")
    arguments = [package, "maskfuse" if imports else "", str(folder / "in"), str(folder / "out")]
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_new_process(model, package, tmp_path):
    batches = [inputs(rows) for rows in (2, ROWS, 33)]
    process = run_in_new_process(package, batches, tmp_path)
    assert process.returncode == 0, process.stderr
    with torch.no_grad():
        for got, x in zip(torch.load(tmp_path / "out"), batches, strict=True):
            torch.testing.assert_close(got, model(x))


def test_without_maskfuse_it_names_the_op(package, tmp_path):
    process = run_in_new_process(package, [inputs(ROWS)], tmp_path, imports=False)
    assert process.returncode != 0 and "Could not find schema for maskfuse::masked_" in process.stderr


@needs_tools
def test_without_python(model, package):
    process = run_program(LIBRARY, package, ROWS, COLUMNS)
    assert process.returncode == 0, process.stderr
    got = float(process.stdout.splitlines()[-1].removeprefix("sum of the model's output: "))
    with torch.no_grad():
        assert got == pytest.approx(model(inputs(ROWS)).sum().item(), rel=1e-5, abs=1e-5)
