"""masked_conv2d against the reference: geometries, structures, memory formats, dtypes, every kernel."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import maskfuse
import pytest
import torch
from conftest import DTYPES, assert_sums_close, few, once, one_of
from maskfuse import Mask, gated_conv2d, masked_conv2d, reference
from maskfuse.functional._conv import Geometry
from maskfuse.ops.masked_conv2d import image_like
from torch.nn import functional as F

OPS = torch.ops.maskfuse

# batch, in, out, kernel, height, width, stride, padding, dilation
GEOMETRIES = {
    "3x3": (2, 33, 17, (3, 3), 9, 14, 1, 1, 1),
    "1x1": (3, 70, 64, (1, 1), 5, 7, 1, 0, 1),
    "1x1 of one pixel": (5, 70, 64, (1, 1), 1, 1, 1, 0, 1),
    "1x1 with stride": (2, 64, 70, (1, 1), 9, 8, 2, 0, 1),
    "1x1 with padding": (2, 64, 70, (1, 1), 3, 4, 1, 1, 1),
    "one image": (1, 32, 16, (3, 3), 30, 20, 1, 1, 1),
    "stride 2": (2, 16, 40, (3, 3), 15, 17, 2, 1, 1),
    "stride 3 beyond the kernel": (2, 32, 40, (2, 2), 13, 16, 3, 0, 1),
    "strides that differ": (2, 20, 30, (3, 3), 12, 12, (2, 1), (0, 2), 1),
    "dilation": (2, 20, 30, (3, 3), 14, 13, 1, 2, 2),
    "dilation and stride": (2, 20, 30, (3, 3), 14, 13, 2, 3, (3, 2)),
    "even kernel": (2, 33, 40, (2, 4), 7, 9, 1, 1, 1),
    "7x7": (1, 8, 20, (7, 7), 23, 20, 2, 3, 1),
    "column kernel": (2, 40, 40, (3, 1), 8, 5, 1, (1, 0), 1),
    "row kernel": (2, 40, 40, (1, 3), 8, 5, 1, (0, 1), 1),
    "padding beyond the kernel": (2, 20, 30, (3, 3), 4, 4, 1, 4, 1),
    "kernel larger than the image": (2, 20, 30, (5, 5), 2, 3, 1, 2, 1),
    "one column": (3, 20, 30, (3, 3), 20, 1, 1, 1, 1),
    "many small images": (9, 30, 20, (3, 3), 3, 3, 1, 1, 1),
}
STRUCTURES = {
    "sparse": lambda shape: Mask.random(shape, 0.1),
    "half": lambda shape: Mask.random(shape, 0.5),
    "dense": lambda shape: Mask.random(shape, 0.9),
    "channels": lambda shape: Mask.channels(shape, torch.rand(shape[0]) < 0.5, torch.rand(shape[1]) < 0.5),
    "most channels": lambda shape: Mask.channels(shape, torch.rand(shape[0]) < 0.9, torch.rand(shape[1]) < 0.95),
    "kernels": lambda shape: Mask.from_dense((torch.rand(*shape[:2], 1, 1) < 0.3).expand(shape)),
    "empty": lambda shape: Mask.full(shape, active=False),
    "full": lambda shape: Mask.full(shape),
}
INTERPRETED_STRUCTURES = {"1x1": DTYPES, "3x3": [torch.bfloat16], "stride 2": [torch.float32]}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def operands(geometry, dtype=torch.float32, memory_format=torch.contiguous_format, groups=1):
    batch, inp, out, kernel, height, width, *_ = geometry
    x = torch.randn(batch, inp * groups, height, width).to(dtype).to(memory_format=memory_format)
    return x, torch.randn(out * groups, inp, *kernel).to(dtype), torch.randn(out * groups).to(dtype)


def check(x, w, mask, b, *geometry):
    """Compares output and gradients, in the operands' dtype, with the reference in float64."""
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    y = masked_conv2d(x, w, mask, b, *geometry)
    grad = torch.randn_like(y)
    got = (y, *torch.autograd.grad(y, (x, w, b), grad))

    def exact(*tensors):
        x, w, b, grad = (t.detach().double().requires_grad_() for t in tensors)
        y = reference.masked_conv2d(x, w, mask, b, *geometry)
        return (y.detach(), *torch.autograd.grad(y, (x, w, b), grad))

    want, magnitude = exact(x, w, b, grad), exact(x.abs(), w.abs(), b.abs(), grad.abs())
    taps, pixels = w[0].numel(), y.shape[0] * y.shape[2] * y.shape[3]
    for one, other, size, terms in zip(got, want, magnitude, (taps, taps * w.shape[0], pixels, pixels), strict=True):
        assert one.shape == other.shape and one.dtype == x.dtype
        # Plain PyTorch may sum half types in pieces of its own, each rounded.
        assert_sums_close(one, other, size, x.dtype, terms, products_rounded=x.dtype.itemsize == 2)
    assert not got[2][~mask.dense()].any()
    return got


@contextlib.contextmanager
def preferring(kernel: str):
    OPS.prefer_masked_conv2d_kernel(kernel)
    try:
        yield
    finally:
        OPS.prefer_masked_conv2d_kernel("")


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


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_any_strides(backend, kernel):
    once(backend, kernel, "accumulate")
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry)
    mask = Mask.random(w.shape, 0.3)
    batch, inp, _, _, height, width, *_ = geometry
    views = {
        "transposed": torch.randn(batch, inp, width, height).transpose(2, 3),
        "every other": torch.randn(2 * batch, 2 * inp, height, 2 * width)[::2, ::2, :, ::2],
        "slice of channels_last": x.new_empty(batch, 2 * inp, height, width)
        .normal_()
        .to(memory_format=torch.channels_last)[:, :inp],
        "expanded": torch.randn(batch, inp, 1, 1).expand(batch, inp, height, width),
        "reversed dimensions": torch.randn(width, height, inp, batch).permute(3, 2, 1, 0),
    }
    with preferring(kernel):
        for view in few(backend, *views.values()):
            check(view, w, mask, b, *geometry[6:])
        check(x, w.to(memory_format=torch.channels_last), mask, b, *geometry[6:])
        check(x, w.transpose(2, 3), mask, b, *geometry[6:])


def test_an_expanded_gradient():
    geometry = GEOMETRIES["3x3"]
    x, w, b = operands(geometry)
    mask = Mask.random(w.shape, 0.3)
    gradients = []
    for function in (masked_conv2d, reference.masked_conv2d):
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        function(leaf, weight, mask, b, *geometry[6:]).sum().backward()
        gradients.append((leaf.grad, weight.grad * mask.dense()))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_without_a_batch_dimension(backend):
    x, w, b = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    y = masked_conv2d(x[0], w, mask, b, padding=1)
    assert y.shape == (17, 9, 14)
    torch.testing.assert_close(y, masked_conv2d(x[:1], w, mask, b, padding=1)[0])


@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "direct", "library"])
def test_an_empty_batch(backend, kernel):
    once(backend, kernel, "accumulate")
    x, w, b = operands(GEOMETRIES["3x3"])
    x, w = x[:0].requires_grad_(), w.requires_grad_()
    with preferring(kernel):
        y = masked_conv2d(x, w, Mask.random(w.shape, 0.3), b, padding=1)
        assert y.shape == (0, 17, 9, 14)
        y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any()


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("batch, inp, out", [(0, 1, 1), (0, 6, 4), (2, 6, 0), (2, 1, 4), (2, 6, 1)])
@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_strides_are_those_that_traced_code_is_told(memory_format, batch, inp, out, size):
    def image(channels):
        return torch.randn(batch, channels, *size).contiguous(memory_format=memory_format)

    x, dy, w = image(inp), image(out), torch.randn(out, inp, 3, 3)
    bits, geometry = Mask.full(w.shape).bits, ([1, 1], [1, 1], [1, 1], 1)
    y = OPS.masked_conv2d(x, w, bits, [], None, *geometry)
    assert y.shape == dy.shape and y.stride() == image_like(x, dy.shape).stride()
    dx = OPS.masked_conv2d_input_grad(dy, w, bits, [], list(size), *geometry)
    assert dx.shape == x.shape and dx.stride() == image_like(dy, x.shape).stride()


def test_masked_nan_takes_no_part(backend):
    x, w, b = operands(GEOMETRIES["3x3"])
    for make in few(backend, *STRUCTURES.values(), of=2):
        mask = make(tuple(w.shape))
        poisoned = w.masked_fill(~mask.dense(), torch.nan)
        for kernel in ("accumulate", "shifted", "direct", "library", "") if backend.startswith("cpu") else ("",):
            with preferring(kernel):
                assert masked_conv2d(x, poisoned, mask, b, padding=1).isfinite().all()
                leaf = x.clone().requires_grad_()
                masked_conv2d(leaf, poisoned, mask, b, padding=1).sum().backward()
                assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_a_sample_with_nan_spoils_no_other(kernel):
    x, w, b = operands(GEOMETRIES["many small images"])
    mask = Mask.random(w.shape, 0.3)
    with preferring(kernel):
        want = masked_conv2d(x, w, mask, b, padding=1)
        x[4] = torch.nan
        got = masked_conv2d(x, w, mask, b, padding=1)
    others = torch.arange(len(x)) != 4
    assert torch.equal(got[others], want[others]) and got[4].isnan().any()


@pytest.mark.parametrize("kernel", ["accumulate", "shifted", "sampled", "direct"])
def test_same_bits_for_any_number_of_threads(kernel):
    x, w, b = operands((4, 40, 70, (3, 3), 15, 14))
    mask = Mask.random(w.shape, 0.2)
    before, results = torch.get_num_threads(), []
    try:
        with preferring(kernel):
            for threads in (1, 2, 3, 8, 1):
                torch.set_num_threads(threads)
                leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
                y = masked_conv2d(leaf, weight, mask, b, padding=1)
                y.pow(2).sum().backward()
                # What this kernel computed: another's choice may depend on how many threads there are.
                ran = {"sampled": [weight.grad], "direct": [y.detach(), leaf.grad, weight.grad]}
                results.append(ran.get(kernel, [y.detach(), leaf.grad]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


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


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
def test_large_images_are_cut_into_strips(kernel):
    # More rows than a strip has, and more channels than leave a strip in cache.
    x, w, b = operands((1, 300, 20, (3, 3), 45, 35))
    with preferring(kernel):
        check(x, w, Mask.random(w.shape, 0.05), b, 1, 1)


def shifts(kernel, stride, padding, dilation, direction="forward", groups=1):
    """Whether `shifted` could run a convolution of 80 channels."""
    mask = Mask.random((80, 80 // groups, *kernel), 0.3)
    about = [2, 80, 15, 15], [*kernel], mask.bits, mask.plan, [1, stride], [0, padding], [1, dilation], groups
    listed = torch.ops.maskfuse.masked_conv2d_candidates(direction, *about, torch.float32, False)
    return "shifted" in [line.split()[0] for line in listed.splitlines()]


@pytest.mark.skipif(torch.ops.maskfuse.cpu_level() == "scalar", reason="vectors only")
def test_what_one_copy_of_the_input_serves():
    assert shifts((3, 3), 1, 1, 1) and shifts((3, 3), 1, 1, 1, "input_grad") and shifts((2, 3), 1, 4, 2)
    assert not shifts((3, 3), 2, 1, 1) and not shifts((3, 3), 2, 1, 1, "input_grad")  # lanes of every other pixel
    assert not shifts((3, 5), 1, 1, 1) and not shifts((1, 1), 1, 0, 1)
    assert not shifts((3, 3), 1, 5, 1) and not shifts((3, 3), 1, 0, 3)  # shifted by more than four doubles
    assert not shifts((3, 3), 1, 1, 1, "weight_grad") and not shifts((3, 3), 1, 1, 1, groups=2)


@pytest.mark.parametrize("kernel", ["accumulate", "shifted"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_fewer_channels_than_threads(kernel, memory_format):
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with preferring(kernel):
            for inp, out in ((200, 3), (200, 5), (2, 300)):
                x, w, b = operands((1, inp, out, (3, 3), 2, 5), memory_format=memory_format)
                check(x, w, Mask.random(w.shape, 0.3), b, 1, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("height, width", [(0, 5), (5, 0), (0, 0)])
def test_an_image_of_padding_alone(height, width):
    # Torch's own convolution, and so the reference, refuses these.
    x, w, b = (t.requires_grad_() for t in operands((2, 24, 24, (3, 3), height, width)))
    for kernel in ("accumulate", "shifted", "direct"):
        with preferring(kernel):
            y = masked_conv2d(x, w, Mask.random(w.shape, 0.3), b, 1, 2)
            assert torch.equal(y, b.reshape(-1, 1, 1).expand(2, 24, height + 2, width + 2))
            dx, dw = torch.autograd.grad(y.sum(), (x, w))
            assert dx.shape == x.shape and not dw.any()


def test_a_plan_of_fewer_weights_is_refused():
    x, w, _ = operands((2, 40, 40, (3, 3), 9, 14))
    plan, many = Mask.random(w.shape, 0.1), Mask.random(w.shape, 0.3)
    with preferring("shifted"):
        if not shifts((3, 3), 1, 1, 1):
            pytest.skip("vectors only")
        with pytest.raises(RuntimeError, match="plan is of a mask that has fewer weights than bits"):
            torch.ops.maskfuse.masked_conv2d(x, w, many.bits, plan.plan, None, [1, 1], [1, 1], [1, 1], 1)


BAD = {
    "integer input": (lambda x, w, m: (x.int(), w, m), TypeError, "input must be float32"),
    "weight of three dimensions": (lambda x, w, m: (x, w[0], m), ValueError, r"weight must have shape \[out, in"),
    "channels": (lambda x, w, m: (x[:, :5], w, m), ValueError, r"input must have shape \[batch, 8, .* \[2, 5, 6, 6\]"),
    "dimensions": (lambda x, w, m: (x[0, 0], w, m), ValueError, r"input must have shape"),
    "mask": (lambda x, w, m: (x, w, m[:3]), ValueError, r"mask must have the shape of weight, \[4, 8, 3, 3\]"),
    "bias": (lambda x, w, m: (x, w, m, torch.zeros(3)), ValueError, r"bias must have shape \[4\], got"),
    "dtypes": (lambda x, w, m: (x.double(), w, m), TypeError, "input and weight must have one dtype"),
    "stride": (lambda x, w, m: (x, w, m, None, 0), ValueError, "stride must be an integer or two of them, at least 1"),
    "three strides": (lambda x, w, m: (x, w, m, None, (1, 1, 1)), ValueError, "stride must be"),
    "padding": (lambda x, w, m: (x, w, m, None, 1, -1), ValueError, "padding must be .* at least 0"),
    "named padding": (lambda x, w, m: (x, w, m, None, 1, "full"), ValueError, "'valid' or 'same', got 'full'"),
    "same with stride": (lambda x, w, m: (x, w, m, None, 2, "same"), ValueError, "needs a stride of 1"),
    "dilation": (lambda x, w, m: (x, w, m, None, 1, 0, 4), ValueError, "exceed the padded input"),
    "groups": (lambda x, w, m: (x, w, m, None, 1, 0, 1, 3), ValueError, "groups must be a divisor of the 4 output"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(make, error, message):
    arguments = make(torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3), torch.ones(4, 8, 3, 3, dtype=torch.bool))
    with pytest.raises(error, match=message):
        masked_conv2d(*arguments)


def test_ops_refuse_what_does_not_fit():
    x, w, b = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    one = [1, 1]
    other = Mask.random((17, 33, 1, 9), 0.3).bits[:, :5]
    for arguments, message in (
        ((x, w, other, [], None, one, one, one, 1), "bits must have shape"),
        ((x, w, mask.bits, mask.plan[:1], None, one, one, one, 1), "plan must have no tensors"),
        ((x, w, mask.bits, mask.plan[::-1], None, one, one, one, 1), r"plan\[0\] is not the plan"),
        ((x, w, mask.bits, [], None, [1], one, one, 1), "stride must be two integers"),
        ((x, w, mask.bits, [], b[:3], one, one, one, 1), "bias must have shape"),
        ((x[:, 1:], w, mask.bits, [], None, one, one, one, 1), "does not fit weight"),
        ((x.double(), w, mask.bits, [], None, one, one, one, 1), "same dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.masked_conv2d(*arguments)
    with pytest.raises(RuntimeError, match="grad must have shape"):
        OPS.masked_conv2d_input_grad(x, w, mask.bits, [], [9, 14], one, one, one, 1)
    with pytest.raises(RuntimeError, match="there is no kernel"):
        OPS.prefer_masked_conv2d_kernel("fast")


def test_backends(monkeypatch):
    x, w, _ = operands(GEOMETRIES["3x3"])
    mask = Mask.random(w.shape, 0.3)
    want = masked_conv2d(x, w, mask, padding=1)
    with maskfuse.use_backend("reference"):
        torch.testing.assert_close(masked_conv2d(x, w, mask, padding=1), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(F.conv2d(x, w * mask.dense(), padding=1), want, atol=1e-4, rtol=1e-4)


def test_explain_names_what_runs():
    mask = Mask.random((256, 256, 3, 3), 0.05)
    explained = maskfuse.explain(mask, batch=8, size=(14, 14))
    assert explained.op == "masked_conv2d"
    if maskfuse.build_info()["cpu_level"] != "scalar":
        assert explained.kernels["forward"].split()[0] in ("accumulate", "shifted")
        assert {"accumulate", "shifted"} <= set(explained.estimates["forward"])
        assert explained.kernels["weight_grad"].startswith("sampled")
        last = maskfuse.explain(mask, batch=8, size=(14, 14), memory_format=torch.channels_last)
        assert last.estimates["forward"]["library"] < explained.estimates["forward"]["library"]
    layer = maskfuse.nn.MaskedConv2d(256, 256, 3, stride=2, padding="valid", groups=1, mask=mask)
    assert set(maskfuse.explain(layer, 2, size=(9, 9)).kernels) == {"forward", "input_grad", "weight_grad"}
    grouped = maskfuse.nn.MaskedConv2d(32, 32, 3, groups=2, padding="same", mask=Mask.random((32, 16, 3, 3), 0.1))
    assert "accumulate" not in str(maskfuse.explain(grouped, 2, size=(9, 9)).kernels)
    assert maskfuse.explain(Mask.full((8, 8, 3, 3)), size=(9, 9)).kernels["forward"] == "F.conv2d"
    with preferring("library"):
        assert maskfuse.explain(layer, 2, size=(9, 9)).kernels["forward"].split()[0] in ("library", "naive")
    for bad in (None, (9,), (2, 2)):
        with pytest.raises(ValueError, match="size"):
            maskfuse.explain(layer, size=bad)


@pytest.mark.parametrize("channels", [None, torch.ones(2, 0, dtype=torch.bool)])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_input_channels(backend, channels, groups):
    """The bias is left; gradients are zero, or empty."""
    x, w, b = (t.requires_grad_() for t in (torch.randn(2, 0, 5, 6), torch.randn(4, 0, 3, 3), torch.randn(4)))
    y = masked_conv2d(x, w, Mask.full(w.shape), b, 1, 1, groups=groups, channels=channels)
    torch.testing.assert_close(y, b[:, None, None].expand(2, 4, 5, 6))
    y.sum().backward()
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
    assert b.grad.eq(2 * 5 * 6).all()


def test_no_output_channels(backend):
    x, w = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(0, 3, 3, 3, requires_grad=True)
    y = masked_conv2d(x, w, Mask.full(w.shape), torch.randn(0), 2, 1)
    assert y.shape == (2, 0, 3, 3)
    y.sum().backward()
    assert not x.grad.any() and w.grad.shape == w.shape


def test_raw_ops_without_channels():
    x, w = torch.randn(2, 0, 5, 6), torch.randn(4, 0, 3, 3)
    args = Mask.full(w.shape).bits, []
    one, none = [1, 1], [0, 0]
    ops = torch.ops.maskfuse
    y = ops.masked_conv2d(x, w, *args, torch.arange(4.0), one, none, one, 1)
    assert y.shape == (2, 4, 3, 4) and y[:, 2].eq(2).all()
    assert ops.masked_conv2d_input_grad(y, w, *args, [5, 6], one, none, one, 1).shape == x.shape
    assert ops.masked_conv2d_weight_grad(y, x, *args, [3, 3], one, none, one, 1).shape == w.shape


@pytest.mark.parametrize("stride", [7, 2**20, 2**31 - 1])
def test_strides_beyond_the_image(stride):
    """One output pixel, in no more time than any other."""
    x, w = torch.randn(2, 24, 6, 6), torch.randn(24, 24, 3, 3)
    mask = Mask.random(w.shape, 0.1)
    want = reference.masked_conv2d(x[:, :, :3, :3], w, mask)
    for kernel in ("accumulate", "shifted", "direct", "library"):
        torch.ops.maskfuse.prefer_masked_conv2d_kernel(kernel)
        try:
            torch.testing.assert_close(masked_conv2d(x, w, mask, None, stride), want, atol=1e-4, rtol=1e-4)
        finally:
            torch.ops.maskfuse.prefer_masked_conv2d_kernel("")


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_geometry_is_checked(name):
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    for value in (1.5, None, torch.tensor(1), [1, 2.0]):
        with pytest.raises(TypeError, match=f"{name} must be an integer or two of them, got"):
            masked_conv2d(x, w, Mask.full(w.shape), **{name: value})
    for value in (2**31, (1, 2**62), [1, 1, 1], -1):
        with pytest.raises(ValueError, match=f"{name} must be an integer or two of them, at least . and below 2\\^31"):
            masked_conv2d(x, w, Mask.full(w.shape), **{name: value})
    raw = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]} | {name: [2**62, 1]}
    with pytest.raises(RuntimeError, match=f"{name} must be two integers, at least . and below 2\\^31"):
        torch.ops.maskfuse.masked_conv2d(x, w, Mask.full(w.shape).bits, [], None, *raw.values(), 1)
