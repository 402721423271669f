"""The Triton backend: when it is chosen and imported, what compilers see of it, what is listed for each GPU.

Its numbers are tested where those of the other backends are: `triton` is one of conftest's BACKENDS and of
device_ops' MACHINES."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import maskfuse
import pytest
import torch
from conftest import HAS_TRITON, INTERPRETED
from maskfuse import Mask, backends, masked_linear
from maskfuse._mask.bits import bit_ops
from maskfuse._mask.plans import has_lists
from maskfuse.functional import _backends as functional_backends
from maskfuse.nn import MaskedConv2d, MaskedLinear
from triton_runs import GPU, interpreted, needs_triton, run


def test_triton_is_imported_only_when_it_is_used():
    code = """
        import sys, torch, maskfuse
        layer = maskfuse.nn.MaskedLinear(64, 64, mask=maskfuse.Mask.random((64, 64), 0.5))
        layer(torch.randn(3, 64)).sum().backward()
        maskfuse.explain(layer), maskfuse.build_info()
        print("triton" in sys.modules, "torch._dynamo" in sys.modules)
    """
    assert run(code) == "False False"


MISSING = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "triton": raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Missing())
    import importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
"""


def test_without_triton():
    code = (
        MISSING
        + """
    import torch, maskfuse
    m = maskfuse.Mask.random((5, 8), 0.5)
    x, w = torch.randn(2, 8), torch.randn(5, 8)
    maskfuse.masked_linear(x, w, m)
    try:
        with maskfuse.use_backend("triton"):
            maskfuse.masked_linear(x, w, m)
    except RuntimeError as error:
        print(error)
    """
    )
    said = "backend 'triton' cannot run masked_linear on cpu: triton is not installed"
    assert run(code, TRITON_INTERPRET="1") == said
    assert "serves CUDA tensors only; with TRITON_INTERPRET=1, tensors on the CPU" in run(code)


@needs_triton
def test_a_triton_that_cannot_be_imported_is_said():
    code = """
        import sys, types, torch, maskfuse
        broken = sys.modules["triton"] = types.ModuleType("triton")
        broken.__spec__ = types.SimpleNamespace(origin="", submodule_search_locations=None, name="triton")
        try:
            with maskfuse.use_backend("triton"):
                maskfuse.masked_linear(torch.randn(2, 8), torch.randn(5, 8), maskfuse.Mask.random((5, 8), 0.5))
        except RuntimeError as error:
            print(error)
    """
    assert "cannot run masked_linear on cpu: triton cannot be used: " in run(code, TRITON_INTERPRET="1")


@pytest.fixture
def old_driver(monkeypatch):
    """A GPU that the compiled library refuses."""
    refuses = {"cuda": lambda device: "the driver is too old", "triton": lambda device: None}
    for name, refusal in refuses.items():
        trusts = replace(backends._backends[name], refuses=refusal, distrusts=lambda op, device: None)
        monkeypatch.setitem(backends._backends, name, trusts)
    return monkeypatch


def test_a_first_launch_that_fails_is_a_reason(monkeypatch):
    """As where there is no C compiler, which Triton needs beside itself."""
    monkeypatch.setattr(functional_backends, "_loading", {})
    monkeypatch.setattr(functional_backends, "_try_triton", lambda index: f"cannot compile on {index}")
    assert functional_backends._load_triton("masked_linear", GPU) == "cannot compile on 0"
    monkeypatch.setattr(functional_backends, "_try_triton", lambda index: None)
    assert functional_backends._load_triton("masked_linear", GPU) == "cannot compile on 0"  # tried once


@needs_triton
def test_it_takes_over_where_the_compiled_library_cannot_run(old_driver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for op in ("masked_linear", "gated_linear", "masked_conv2d", "gated_conv2d"):
            assert backends.choose(op, GPU).name == "triton"
        for op in ("channel_gather", "channel_scatter", "channel_select"):
            assert backends.choose(op, GPU).name == "triton"
    verdicts = dict(backends.verdicts("masked_linear", GPU))
    assert verdicts["cuda"] == "the driver is too old" and verdicts["triton"] is None
    assert bit_ops(GPU) is torch.ops.maskfuse_triton
    with (
        maskfuse.use_backend("cuda"),
        pytest.raises(RuntimeError, match="backend 'cuda' cannot run masked_linear on cuda: the driver is too old"),
    ):
        backends.choose("masked_linear", GPU)
    for names in (("reference",), ("cuda", "reference")):
        with maskfuse.use_backend(*names):
            assert bit_ops(GPU) is None
    with maskfuse.use_backend("triton", "reference"):
        assert bit_ops(GPU) is torch.ops.maskfuse_triton
    with maskfuse.use_backend("cuda", "reference"):  # which leaves triton out
        assert backends.choose("masked_linear", GPU).name == "reference"


def test_restriction_to_several():
    x, w, mask = torch.randn(2, 8), torch.randn(5, 8), Mask.random((5, 8), 0.5)
    with maskfuse.use_backend("cuda", "cpu"):
        assert backends.choose("masked_linear", "cpu").name == "cpu"
        masked_linear(x, w, mask)
        with maskfuse.use_backend("reference"):
            assert backends.choose("masked_linear", "cpu").name == "reference"
        assert backends.requested() == ("cuda", "cpu")
    with (
        maskfuse.use_backend("cuda"),
        pytest.raises(RuntimeError, match="cannot run masked_linear on cpu: serves CUDA tensors only"),
    ):
        masked_linear(x, w, mask)
    with pytest.raises(TypeError, match="needs the name of a backend"), maskfuse.use_backend():
        pass
    code = "import maskfuse as m; print(m.explain(m.Mask.full((2, 2))).backend)"
    assert run(code, MASKFUSE_BACKEND="cuda, reference") == "reference"


def test_build_info():
    found = maskfuse.build_info()["triton"]
    assert found["interpreted"] == INTERPRETED and (found["version"] is not None) == HAS_TRITON
    code = "import json, maskfuse; print(json.dumps(maskfuse.build_info()['triton']))"
    assert json.loads(run(code)) == {"version": found["version"], "loaded": False, "interpreted": False}


@interpreted
def test_explain():
    layer = MaskedLinear(64, 300, mask=Mask.random((300, 64), 0.5))
    conv = MaskedConv2d(16, 32, 3, mask=Mask.random((32, 16, 3, 3), 0.5))
    with maskfuse.use_backend("triton"):
        found = maskfuse.explain(layer.eval(), batch=4)
        assert found.backend == "triton" and found.kernels["forward"] == "element_product few"
        assert maskfuse.explain(layer, batch=512).kernels["forward"] == "element_product small"
        half = maskfuse.explain(layer, batch=64, dtype=torch.bfloat16)
        assert half.kernels["forward"] == "product small" and "tiles on tensor cores" in str(half)
        layer.pack()
        assert maskfuse.explain(layer, batch=16).kernels["forward"] == "decode"
        assert maskfuse.explain(layer, batch=17).kernels["forward"] == "element_product small"
        assert set(maskfuse.explain(conv, size=(9, 9)).kernels.values()) <= {
            "element_product small",
            "element_product small in 2 parts",
        }
        assert "tiles of single multiply-adds" in str(found)
        full = Mask.full((64, 64))
        assert maskfuse.explain(full).kernels["forward"] == "F.linear"
        channels = Mask.channels((128, 256), torch.arange(64))
        assert maskfuse.explain(channels, batch=256).kernels["forward"] == "library"


@interpreted
def test_packed_layers():
    """A weight packed for one backend is not read by another."""
    mask = Mask.random((70, 130), 0.3)
    layer = MaskedLinear(130, 70, mask=mask).eval()
    x = torch.randn(3, 130)
    want = layer(x)
    with maskfuse.use_backend("triton"):
        layer.pack()
        assert layer.packed_nbytes > 0
        with torch.no_grad():
            packed = layer(x)
            torch.testing.assert_close(packed, want)
            version = layer.weight._version
            layer.weight.data.zero_()  # which is not noticed: the packed values are read
            assert layer.weight._version == version and torch.equal(layer(x), packed)
    torch.testing.assert_close(layer(x), layer.bias.expand_as(want))  # another backend reads the weight
    layer.pack()
    with maskfuse.use_backend("triton"):
        torch.testing.assert_close(layer(x), layer.bias.expand_as(want))


@interpreted
@pytest.mark.parametrize(("share", "listed"), [(0.5, True), (0.7, True), (0.75, False), (1.0, False)])
def test_lists_are_kept_where_they_leave_out_enough(share, listed):
    """By rows and by channels alike; `explain` asks the same."""
    assert backends.trusted("triton", "masked_linear", torch.device("cpu"))  # for which the ops are imported
    blocks = torch.arange(40).reshape(5, 8) < 40 * share
    for rows, columns in ((128, 64), (64, 128)):
        dense = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        lists = Mask.from_dense(dense & (torch.rand(dense.shape) < 0.9)).block_lists
        index, direction = (0, "forward") if rows == 128 else (1, "input_grad")
        assert lists[index].shape[0] == (rows * 5 // 128 if rows == 128 else 8) * listed
        assert has_lists(lists, direction) == listed
