"""The Triton backend: when it is chosen and imported, what compilers see of it, what is listed for each GPU.

Its numbers are tested where those of the other backends are: `triton` is one of conftest's BACKENDS and of
device_ops' MACHINES.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import maskfuse
import pytest
import torch
from conftest import HAS_TRITON, INTERPRETED
from maskfuse import Mask, backends, masked_linear
from maskfuse._mask.bits import bit_ops
from maskfuse._mask.plans import has_lists
from maskfuse.functional import _backends as functional_backends
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch.library import opcheck

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
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler):
    torch._dynamo.reset()
    layer = MaskedLinear(40, 20, mask=Mask.random((20, 40), 0.4))
    conv = MaskedConv2d(4, 6, 3, mask=Mask.random((6, 4, 3, 3), 0.4))
    x, image = torch.randn(3, 40, requires_grad=True), torch.randn(2, 4, 5, 5)
    with maskfuse.use_backend("triton"):
        compiled = torch.compile(lambda x, image: (layer(x).pow(2), conv(image)), fullgraph=True, backend=compiler)
        for got, want in zip(compiled(x, image), (layer(x).pow(2), conv(image)), strict=True):
            torch.testing.assert_close(got, want)
        got = torch.autograd.grad(compiled(x, image)[0].sum(), (x, layer.weight))
        want = torch.autograd.grad(layer(x).pow(2).sum(), (x, layer.weight))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@interpreted
def test_opcheck():
    ops = torch.ops.maskfuse_triton
    x, w, dy, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 37), (5, 37), (3, 5), (5,)))
    bits = Mask.random((5, 37), 0.5).bits
    opcheck(ops.masked_linear.default, (x, w, bits, [], b))
    opcheck(ops.masked_linear_input_grad.default, (dy, w, bits, []))
    opcheck(ops.masked_linear_weight_grad.default, (dy, x, bits, []))
    opcheck(ops.soft_masked_linear.default, (x, w, w.detach(), None))
    image, kernels = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randn(3, 4, 2, 2, requires_grad=True)
    bits = Mask.random((3, 4, 2, 2), 0.5).bits
    geometry = ([2, 1], [1, 0], [1, 1])
    opcheck(ops.masked_conv2d.default, (image, kernels, bits, [], None, *geometry, 1))
    chosen = Mask.random((2, 4), 0.5).bits
    opcheck(ops.gathered_conv2d.default, (image, kernels, chosen, None, *geometry))
    opcheck(ops.channel_gather.default, (image, torch.tensor([1, 1, 3]), 4, None, 2))
    opcheck(ops.channel_scatter.default, (image, torch.tensor([1, 1, 3, 0]), 5, None, 2, False))
    opcheck(ops.channel_select.default, (image, torch.rand(2, 4) < 0.5, 3))


@needs_triton
def test_schemas_are_those_of_the_compiled_ops():
    code = """
        import re, torch, maskfuse, maskfuse.triton
        from maskfuse.triton import products
        for name in sorted(n for n in vars(products) if hasattr(torch.ops.maskfuse, n) and n[0] != "_"):
            pair = [str(getattr(ops, name).default._schema) for ops in (torch.ops.maskfuse, torch.ops.maskfuse_triton)]
            plain = [re.sub(r"maskfuse(_triton)?::", "", s).replace("SymInt", "int") for s in pair]
            print(name, *[s.replace(" ", "") for s in plain])
    """
    lines = [line.split() for line in run(code).splitlines()]
    assert len(lines) >= 16
    for name, compiled, triton in lines:
        assert compiled == triton, name


@interpreted
@pytest.mark.parametrize(("share", "listed"), [(0.5, True), (0.7, True), (0.75, False), (1.0, False)])
def test_lists_are_kept_where_they_leave_out_enough(share, listed):
    """By rows and by channels alike; `explain` asks the same."""
    blocks = torch.arange(40).reshape(5, 8) < 40 * share
    for rows, columns in ((128, 64), (64, 128)):
        dense = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        lists = Mask.from_dense(dense & (torch.rand(dense.shape) < 0.9)).block_lists
        index, direction = (0, "forward") if rows == 128 else (1, "input_grad")
        assert lists[index].shape[0] == (rows * 5 // 128 if rows == 128 else 8) * listed
        assert has_lists(lists, direction) == listed


@needs_triton
def test_compilers_see_the_kernels():
    """Traced, not run: what AOTAutograd hands to a compiler holds the kernels themselves."""
    code = """
        import torch, maskfuse, maskfuse.triton
        from torch._dynamo.backends.common import aot_autograd

        class Seen(Exception):
            pass

        def look(graph, inputs):
            text = graph.print_readable(print_output=False)
            raise Seen("triton_kernel_wrapper" in text, "maskfuse_triton" in text)

        mask = maskfuse.Mask.random((64, 128), 0.5)
        lists = torch.ops.maskfuse_triton.mask_lists(mask.bits, 128, 1)

        def step(x, w):
            return torch.relu(torch.ops.maskfuse_triton.masked_linear(x, w, mask.bits, lists, None))

        try:
            with torch.no_grad():
                compiled = torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=look))
                compiled(torch.randn(4, 128), torch.randn(64, 128))
        except Exception as error:
            while not isinstance(error, Seen):
                error = error.__cause__ or error.__context__
            print(*error.args)
    """
    assert run(code).splitlines()[-1] == "True False"


@needs_triton
def test_configurations_of_a_family_sum_alike():
    """So that timing them cannot change a result's bits; and a list of blocks serves all of them."""
    code = """
        import json, maskfuse.triton
        from maskfuse.triton import _launch
        print(json.dumps([[t.base_fn.__name__, names, configs] for t, (configs, names) in _launch.listed.items()]))
    """
    tuners = json.loads(run(code))
    assert len(tuners) >= 17
    for kernel, names, configs in tuners:
        assert set(configs) == {"sm90", "sm80", "amd"}
        depth = 2  # the last of a tile's sizes is what is summed over
        for listed in configs.values():
            assert 2 <= len(listed) <= 3 and len({tile[depth] for tile, _, _ in listed}) == 1, kernel
            if "outer" not in kernel:
                assert all(128 % tile[names.index("BLOCK_N")] == 0 for tile, _, _ in listed)


SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}  # bytes that a block may have


def compiled_for(target: str, dtypes: str) -> list[dict]:
    script = Path(__file__).with_name("triton_compile.py")
    done = subprocess.run(
        [sys.executable, str(script), "--first", "--targets", target, "--dtypes", dtypes],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    "target, dtypes", [("sm_80", "bfloat16,float64"), ("sm_90", "bfloat16,float32,bool"), ("gfx942", "bfloat16,bool")]
)
def test_every_kernel_compiles_ahead_of_time(target, dtypes):
    rows = compiled_for(target, dtypes)
    failed = [row for row in rows if "error" in row]
    assert not failed, failed[0]
    kernels = {row["kernel"] for row in rows}
    assert len(kernels) >= 9 and all(row["shared"] <= SHARED[target] for row in rows), kernels
    large = [r for r in rows if r["dtype"] == "bfloat16" and re.search("product", r["kernel"]) and r["config"]]
    assert large
    if target == "gfx942":
        return
    tensor_cores = "wgmma.mma_async" if target == "sm_90" else "mma.sync"
    assert all(row[tensor_cores] > 0 for row in large)
    # Whole tiles of operands with aligned rows come by asynchronous copies of 16 bytes, and next to nothing spills.
    aligned = [row for row in large if row["kernel"] == "product_kernel" and row["cp.async.cg"] > 0]
    assert len(aligned) > 5 and all(row["stack"] <= 64 for row in aligned), [r for r in aligned if r["stack"] > 64]


@interpreted
def test_wide_masks_and_far_values():
    """What no test can reach by size: the grid's second index ends at 65535, offsets of 32 bits at 2^31."""
    from maskfuse.triton._operands import far

    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maskfuse.triton.mask, "launch", lambda kernel, grid, *rest, **meta: launched.append(grid))
        maskfuse.triton.mask.mask_pack(torch.zeros((1, 9_000_000), dtype=torch.bool))
    assert launched == [(70313,)]
    shape = (1 << 17, 1 << 15)
    assert far(torch.empty(shape, device="meta")) and not far(torch.empty((1 << 15, 1 << 15), device="meta"))
    assert not far(torch.empty((0, *shape), device="meta")[:, :1, :1]) and far(None, torch.empty(shape, device="meta"))
