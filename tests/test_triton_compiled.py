"""Triton's kernels compiled: by torch's compiler, ahead of time, and what schemas and families promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import maskfuse
import pytest
import torch
from maskfuse import Mask, backends
from maskfuse.nn import MaskedConv2d, MaskedLinear
from torch.library import opcheck
from triton_runs import interpreted, needs_triton, run


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
    assert backends.trusted("triton", "masked_linear", torch.device("cpu"))  # for which the ops are imported
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
