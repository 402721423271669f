"""First uses in traced and compiled code, and on devices that are refused."""

from __future__ import annotations

from dataclasses import replace

import maskfuse
import pytest
import torch
from maskfuse import Mask, _library, backends
from maskfuse._mask import bits as mask_bits
from maskfuse._self_test import checks, compare, first_use, record, run
from maskfuse.functional import _backends as functional_backends
from maskfuse.ops.library import pairs
from pretended import chosen, failing, use
from pretended import pretended as pretended
from test_self_test_checks import CPU, GPU
from test_self_test_checks import one_thread as one_thread
from torch.fx.experimental.proxy_tensor import make_fx

TRACERS = {
    "compile": lambda use: torch.compile(use, backend="eager", fullgraph=True)(torch.ones(2)),
    "jit": lambda use: torch.jit.trace(use, torch.ones(2), check_trace=False),
    "make_fx": lambda use: make_fx(use)(torch.ones(2)),
    "fake": lambda use: make_fx(use, tracing_mode="fake")(torch.ones(2)),
    "vmap": lambda use: torch.func.vmap(use)(torch.ones(2)),
    "grad": lambda use: torch.func.grad(lambda x: use(x).sum())(torch.ones(2)),
    "export": lambda use: torch.export.export(Calls(use), (torch.ones(2),)),
}


class Calls(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracer", TRACERS)
def test_not_run_while_something_traces(pretended, tracer):
    torch.compiler.reset()
    TRACERS[tracer](use)
    assert not pretended.runs and not first_use._verdicts and not record.path().exists()
    assert torch.equal(use(torch.ones(2)), torch.full((2,), 2.0))
    assert pretended.runs == ["masked_linear"]  # it would have run


def test_not_run_under_capture(pretended, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert chosen() == "cuda"
    assert not pretended.runs and not first_use._verdicts
    chosen()
    assert pretended.runs == ["masked_linear"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_code_takes_what_is_known_and_stays(pretended):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    failing(pretended)
    chosen()
    compiled = torch.compile(use, backend=backend, fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.zeros(2))  # the reference
    chosen("gated_linear")  # one verdict more
    compiled(torch.ones(2))
    assert len(graphs) == 1


def test_code_compiled_before_anything_is_known_stays(pretended):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(use, backend=backend, fullgraph=True)
    compiled(torch.ones(2))
    assert chosen() == "cuda" and pretended.runs == ["masked_linear"]
    compiled(torch.ones(2))
    assert len(graphs) == 1


REFUSED = {
    "library": r"_C_cuda was not built",
    "driver": r"the driver is for CUDA 12080, the library needs 13000",
    "capability": r"compute capability 7\.5, the kernels need 8\.0",
}


@pytest.fixture(params=REFUSED)
def refused(request, pretended, monkeypatch):
    """A CUDA torch where our kernels cannot run, and the reason that is given."""
    library = "_C_cuda was not built" if request.param == "library" else None
    versions = {"driver": "12080" if request.param == "driver" else "13000", "runtime": "13000"}
    capability = (7, 5) if request.param == "capability" else (8, 0)
    monkeypatch.setattr(_library, "cuda_reason", library)
    monkeypatch.setattr(functional_backends, "cuda_library_info", lambda: versions)
    monkeypatch.setattr(functional_backends, "_capable", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    real = replace(backends._backends["cuda"], refuses=functional_backends._cuda_refuses)
    monkeypatch.setitem(backends._backends, "cuda", real)
    return REFUSED[request.param]


def test_nothing_is_run_where_the_device_is_refused(pretended, refused, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {name: pretended.check(name) for name in ("mask", "masked_linear")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert mask_bits.bit_ops(GPU) is None and mask_bits.bit_ops(CPU) is torch.ops.maskfuse
    with pytest.warns(UserWarning, match=refused):
        assert chosen() == "reference"
    assert run._cuda_devices() == []
    with pytest.raises(ValueError, match=f"cannot be tested: {refused}"):
        maskfuse.self_test("cuda")
    assert pretended.runs == [] and not record.path().exists()


@pytest.mark.parametrize("refused", ["driver"], indirect=True)
def test_compiled_code_that_is_the_first_to_ask(pretended, refused, monkeypatch):
    def versions():
        return {**pairs(torch.ops.maskfuse.library_info()), "driver": "12080", "runtime": "13000"}

    monkeypatch.setattr(functional_backends, "cuda_library_info", versions)
    torch.compiler.reset()
    compiled = torch.compile(use, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.zeros(2))  # the reference


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masks_are_packed_on_the_host_where_the_device_cannot(pretended, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {"mask": pretended.check("mask")})
    assert mask_bits.bit_ops(GPU) is mask_bits.bit_ops(CPU) is torch.ops.maskfuse
    pretended.restarted()
    record.path().unlink()
    pretended.errors["mask"] = compare.Mismatch("mask_pack: 1 of 9 elements differ")
    assert mask_bits.bit_ops(GPU) is None and mask_bits.bit_ops(CPU) is torch.ops.maskfuse

    dense = torch.rand(70, 90) < 0.5
    bits = Mask.from_dense(dense).bits
    monkeypatch.setattr(mask_bits, "bit_ops", lambda device: None)
    mask = Mask.from_dense(dense)
    assert torch.equal(mask.bits, bits) and torch.equal(mask.dense(), dense)
