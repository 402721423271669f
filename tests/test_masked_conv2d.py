"""masked_conv2d against the reference: geometries, structures, memory formats, dtypes, every kernel."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import maskfuse
import pytest
import torch
from conftest import DTYPES, few, once, one_of
from convolutions import FORMATS, GEOMETRIES, STRUCTURES, check, operands, preferring, shifts
from maskfuse import Mask, gated_conv2d, masked_conv2d, reference
from maskfuse.functional._conv import Geometry

INTERPRETED_STRUCTURES = {"1x1": DTYPES, "3x3": [torch.bfloat16], "stride 2": [torch.float32]}


@pytest.fixture(params=["ours", "library"])
def kernels(request):
    """Our own kernels wherever there is one, or torch's."""
    if request.param == "library":
        with preferring("library"):
            yield
        return
    with preferring("accumulate"):  # and, there being no other of our own, `sampled`
        yield


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "sampled", "direct", "library"])
def test_geometries(request, backend, geometry, memory_format, kernel):
    one_of(request, backend, 2)
    once(backend, kernel, "accumulate")
    if backend == "triton" and (geometry[3] == (7, 7) or (memory_format != FORMATS["contiguous"] and geometry[0] != 9)):
        pytest.skip("many cases alike in the interpreter")
    x, w, b = operands(geometry, memory_format=memory_format)
    with preferring(kernel):
        check(x, w, Mask.random(w.shape, 0.3), b, *geometry[6:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES.keys())
@pytest.mark.parametrize("name", ["3x3", "1x1", "stride 2"])
def test_structures(request, backend, dtype, make, name):
    one_of(request, backend, 4)
    geometry = GEOMETRIES[name]
    if backend == "triton" and dtype not in INTERPRETED_STRUCTURES[name]:
        pytest.skip("many cases alike in the interpreter")
    kernels = ("accumulate", "shifted", "sampled", "direct", "") if backend.startswith("cpu") else ("",)
    for memory_format in few(backend, *FORMATS.values()):
        x, w, b = operands(geometry, dtype, memory_format)
        for kernel in kernels:
            with preferring(kernel):
                check(x, w, make(tuple(w.shape)), b, *geometry[6:])


@pytest.mark.parametrize("groups", [2, 5])
def test_groups(backend, groups):
    if backend == "triton" and groups == 5:
        pytest.skip("many cases alike in the interpreter")
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry, groups=groups)
    check(x, w, Mask.random(w.shape, 0.4), b, *geometry[6:], groups)


def test_depthwise(backend):
    groups = 4 if backend == "triton" else 24
    x, w, b = torch.randn(2, groups, 9, 8), torch.randn(2 * groups, 1, 3, 3), torch.randn(2 * groups)
    check(x, w, Mask.random(w.shape, 0.4), b, 1, 1, 1, groups)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)])
def test_named_padding(backend, padding, kernel):
    x, w, b = torch.randn(2, 40, 6, 7), torch.randn(40, 40, *kernel), torch.randn(40)
    check(x, w, Mask.random(w.shape, 0.3), b, 1, padding, 2 if kernel == (3, 3) else 1)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "direct", "library"])
def test_memory_format_is_kept(memory_format, kernel):
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry, memory_format=memory_format)
    with preferring(kernel):
        y, dx, dw, _ = check(x, w, Mask.random(w.shape, 0.3), b, *geometry[6:])
    assert y.is_contiguous(memory_format=memory_format) and dx.is_contiguous(memory_format=memory_format)
    assert dw.is_contiguous()


@pytest.mark.parametrize("kind", ["bool", "int", "soft"])
def test_masks_as_tensors(backend, kind):
    x, w, b = operands(GEOMETRIES["stride 2"])
    mask = torch.rand(w.shape) if kind == "soft" else torch.rand(w.shape) < 0.4
    mask = mask.int() if kind == "int" else mask
    got, want = (f(x, w, mask, b, 2, 1) for f in (masked_conv2d, reference.masked_conv2d))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_soft_masks_and_gates_get_gradients(backend):
    x, w, b = operands(GEOMETRIES["stride 2"])
    scores = torch.randn(w.shape)
    for ours, theirs in ((masked_conv2d, reference.masked_conv2d), (gated_conv2d, reference.gated_conv2d)):
        gradients = []
        for function in (ours, theirs):
            leaves = [t.clone().requires_grad_() for t in (x, w, scores, b)]
            function(*leaves, 2, 1).pow(2).sum().backward()
            gradients.append([t.grad for t in leaves])
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("on_cuda", [False, True])
def test_plans_in_groups(monkeypatch, on_cuda):
    """The CUDA kernels find a plan's bits by taps in it, in groups too; those of the CPU take no plan there."""
    given = []
    monkeypatch.setattr(maskfuse.ops, "masked_conv2d", lambda input, weight, bits, plan, *rest: given.append(plan))
    mask = Mask.random((64, 16, 3, 3), 0.5)
    run = sys.modules["maskfuse.functional.masked_conv2d"]._kernels
    run(SimpleNamespace(is_cuda=on_cuda), None, mask, None, Geometry([1, 1], [1, 1], [1, 1], 4))
    assert mask.plan and given == [mask.plan if on_cuda else []]


@pytest.mark.skipif(torch.ops.maskfuse.cpu_level() == "scalar", reason="vectors only")
def test_what_one_copy_of_the_input_serves():
    assert shifts((3, 3), 1, 1, 1) and shifts((3, 3), 1, 1, 1, "input_grad") and shifts((2, 3), 1, 4, 2)
    assert not shifts((3, 3), 2, 1, 1) and not shifts((3, 3), 2, 1, 1, "input_grad")  # lanes of every other pixel
    assert not shifts((3, 5), 1, 1, 1) and not shifts((1, 1), 1, 0, 1)
    assert not shifts((3, 3), 1, 5, 1) and not shifts((3, 3), 1, 0, 3)  # shifted by more than four doubles
    assert not shifts((3, 3), 1, 1, 1, "weight_grad") and not shifts((3, 3), 1, 1, 1, groups=2)
