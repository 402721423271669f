"""The kernels' self-test: that each of its checks finds what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import maskfuse
import pytest
import torch
from conftest import DTYPES
from device_ops import MACHINES, capability
from maskfuse import Mask, backends
from maskfuse._self_test import checks, compare, first_use
from maskfuse._self_test.checks import CHECKS

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)  # pretended
needs_simt = pytest.mark.skipif(MACHINES["simt"] is None, reason="needs build/simt (make simt)")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the operands are small
    yield
    torch.set_num_threads(before)


def simt():
    return MACHINES["simt"].ops


class Wrong:
    """The ops, of which one gives `spoil` of its result, or of part `part` of it, where `when` says so of arguments."""

    def __init__(self, ops, name, spoil, part=0, when=lambda result, args: True):
        self.ops, self.wrong, self.spoil, self.part, self.when = ops, name, spoil, part, when
        self.name = ops.name
        self.spoiled = 0

    def __getattr__(self, name):
        op = getattr(self.ops, name)
        if name != self.wrong:
            return op

        def call(*args):
            result = op(*args)
            parts = [result] if isinstance(result, torch.Tensor) else list(result)
            if self.part < len(parts) and parts[self.part].numel() and self.when(parts[self.part], args):
                parts[self.part] = self.spoil(parts[self.part])
                self.spoiled += 1
            return parts[0] if isinstance(result, torch.Tensor) else parts

        return call


def spoiled(t, position, value):
    t = t.clone()
    t[tuple(int(i) for i in torch.unravel_index(position, t.shape))] = value
    return t


def adds(t):
    """0.1 more in the smallest element that is not 0 (one bit more in integers)."""
    size = t.double().abs()
    at = size.where(size > 0, torch.inf).argmin()
    return spoiled(t, at, t.flatten()[at] + 0.1 if t.is_floating_point() else t.flatten()[at] ^ 1)


def drops(t):
    """The largest element is 0."""
    return spoiled(t, t.double().abs().argmax(), 0)


def unwritten(t):
    """The first element that is not 0 is a NaN."""
    return spoiled(t, (t != 0).flatten().byte().argmax(), torch.nan)


def of_dtype(dtype):
    return lambda result, args: result.dtype == dtype


def with_plan(length):
    """Where the list of tensors among the arguments has `length` of them."""
    return lambda result, args: any(
        isinstance(a, list) and len(a) == length and all(isinstance(t, torch.Tensor) for t in a) for a in args
    )


def must_fail(check, wrong):
    error = checks.failure(CHECKS[check], wrong, CPU)
    assert wrong.spoiled, f"{check} never calls {wrong.wrong} in this way"
    assert isinstance(error, compare.Mismatch), error
    return str(error)


ON_CPU = [name for name, check in CHECKS.items() if check.applies(torch.ops.maskfuse, CPU)]
CALLS = [(name, call) for name in ON_CPU for call in CHECKS[name].calls]
ON_SIMT = [
    (name, call)
    for name, check in CHECKS.items()
    if MACHINES["simt"] is not None and check.applies(simt(), CPU)
    for call in check.calls
    if call != "use_masked_library"
]
FLOATING = [(check, call) for check, call in CALLS if check != "mask"]
PRODUCTS = [(check, call) for check, call in FLOATING if not check.startswith("channel")]


def test_checks_of_the_cpu():
    assert [name for name in CHECKS if name != "masked_copy"] == ON_CPU


@pytest.mark.parametrize("check", ON_CPU)
def test_right_kernels_pass(check):
    assert checks.failure(CHECKS[check], torch.ops.maskfuse, CPU) is None


@needs_simt
@pytest.mark.parametrize("check", CHECKS)
def test_right_kernels_pass_on_the_stand_in(check):
    if not CHECKS[check].applies(simt(), CPU):
        assert check.startswith("channel")
        pytest.skip("has no such kernel")
    assert checks.failure(CHECKS[check], simt(), CPU) is None


@pytest.mark.parametrize("spoil", [adds, drops, unwritten], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("check", "call"), CALLS)
def test_one_wrong_element_is_found(check, call, spoil):
    floating = call not in ("mask_pack", "mask_unpack")
    if spoil is unwritten and not floating:
        pytest.skip("integers have no NaN")
    when = of_dtype(torch.float32) if floating else lambda result, args: True
    must_fail(check, Wrong(torch.ops.maskfuse, call, spoil, when=when))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("check", "call"), FLOATING)
def test_every_dtype_is_compared(check, call, dtype):
    if check == "gathered_conv2d" and dtype in compare.HALF:
        pytest.skip("the CPU's runs in float32 and float64")
    must_fail(check, Wrong(torch.ops.maskfuse, call, drops, when=of_dtype(dtype)))


def test_both_gradients_of_a_gate_are_compared():
    assert "scores_grad" in must_fail("gated_linear", Wrong(torch.ops.maskfuse, "gated_linear_weight_grad", drops, 1))


@pytest.mark.parametrize("length", [0, 2])
@pytest.mark.parametrize(("check", "call"), [c for c in PRODUCTS if c[0].startswith("masked")])
def test_with_and_without_a_plan(check, call, length):
    must_fail(check, Wrong(torch.ops.maskfuse, call, drops, when=with_plan(length)))


def test_packed_values_are_used():
    must_fail("masked_linear", Wrong(torch.ops.maskfuse, "masked_linear", drops, when=with_plan(6)))
    must_fail("masked_linear", Wrong(torch.ops.maskfuse, "masked_linear_pack", lambda t: t.fill_(0), part=0))


@needs_simt
@pytest.mark.parametrize("spoil", [adds, drops], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("check", "call"), ON_SIMT)
def test_one_wrong_element_is_found_on_the_stand_in(check, call, spoil):
    when = (lambda result, args: True) if check == "mask" else of_dtype(torch.float32)
    must_fail(check, Wrong(simt(), call, spoil, when=when))


@needs_simt
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", [*CHECKS["masked_linear"].calls, "gated_linear_weight_grad"])
def test_passes_around_the_library_are_compared_on_the_stand_in(call, dtype):
    must_fail("masked_copy", Wrong(simt(), call, drops, when=of_dtype(dtype)))


@needs_simt
@pytest.mark.parametrize("dtype", compare.HALF, ids=str)
@pytest.mark.parametrize("call", CHECKS["gathered_conv2d"].calls)
def test_half_types_of_chosen_channels_are_compared_on_the_stand_in(call, dtype):
    must_fail("gathered_conv2d", Wrong(simt(), call, drops, when=of_dtype(dtype)))


@needs_simt
@pytest.mark.parametrize(
    ("check", "call"), [c for c in ON_SIMT if c[0].startswith(("masked", "gathered")) and c[0] != "masked_copy"]
)
def test_large_tiles_are_compared(check, call):
    error = must_fail(check, Wrong(simt(), call, drops, when=lambda result, args: result.numel() > 100_000))
    assert "of large tiles" in error


@needs_simt
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_convolutions_own_kernels_are_run(direction):
    """Of the check of convolutions: both tiles of the implicit product, one cut in parts, and a product of matrices."""
    chosen = set()

    class Watched:
        name = simt().name

        def __getattr__(self, name):
            op = getattr(simt(), name)
            suffix = "" if direction == "forward" else f"_{direction}"

            def call(*args):
                result = op(*args)
                given, other, *rest = args
                size, out = list(given.shape), other.shape[0]
                kernel = list(other.shape[2:])
                if direction == "input_grad":
                    size = list(result.shape)
                if direction == "weight_grad":
                    size, kernel, out = list(other.shape), rest[2], given.shape[1]
                geometry = args[5:] if direction == "forward" else args[5:9]
                chosen.add(
                    simt().masked_conv2d_choice(direction, size, kernel, out, *geometry, given.dtype, False, 6, 80)
                )
                return result

            return call if name == f"masked_conv2d{suffix}" else op

    assert checks.failure(CHECKS["masked_conv2d"], Watched(), CPU) is None
    for kernel in ("product 128x128", "product 64x64 in", "linear: product", "element in"):
        assert any(name.startswith(kernel) for name in chosen), (kernel, chosen)


@needs_simt
@pytest.mark.parametrize("side", range(2), ids=["256x128", "128x128"])
@pytest.mark.parametrize("call", CHECKS["masked_linear"].calls)
def test_hopper_is_compared(call, side):
    with capability(MACHINES["simt"], 90):
        sides = compare.sides_of_hopper(simt(), CPU)
        assert len(sides) == 2
        error = must_fail(
            "masked_linear",
            Wrong(simt(), call, drops, when=lambda result, args: list(result.shape) == [sides[side]] * 2),
        )
        assert "of large tiles" in error
        assert checks.failure(CHECKS["masked_linear"], simt(), CPU) is None
    assert compare.sides_of_hopper(simt(), CPU) == []


@needs_simt
def test_packed_values_are_used_on_the_stand_in():
    if not compare.has_kernel(simt(), "masked_linear_pack", CPU):
        pytest.skip("has no such kernel")
    must_fail("masked_linear", Wrong(simt(), "masked_linear", drops, when=lambda result, args: len(args[3]) > 2))


@needs_simt
@pytest.mark.parametrize("part", [0, 1, 2])
def test_lists_are_compared(part):
    assert "mask_lists" in must_fail("mask", Wrong(simt(), "mask_lists", adds, part))


@needs_simt
@pytest.mark.parametrize("name", ["masked_linear", "masked_conv2d"])
def test_lists_are_used(name):
    """An empty list of rows, which leaves blocks out, shows in the product."""
    must_fail(name, Wrong(simt(), "mask_lists", lambda t: t.fill_(0), part=0))


def test_a_kernel_that_raises_fails():
    def refuse(t):
        raise RuntimeError("no kernel image is available for execution on the device")

    error = checks.failure(CHECKS["mask"], Wrong(torch.ops.maskfuse, "mask_pack", refuse), CPU)
    assert first_use.described(error) == "RuntimeError: no kernel image is available for execution on the device"


def test_a_device_lost_before_is_told_apart(monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: lost(device)))
    with pytest.raises(checks.DeviceLost, match="before the check: CUDA error"):
        checks._await(GPU)


def test_masked_gradients_must_be_positive_zero():
    def negative_zero(t):
        return spoiled(t, (t == 0).flatten().byte().argmax(), -0.0)

    error = must_fail("masked_linear", Wrong(torch.ops.maskfuse, "masked_linear_weight_grad", negative_zero))
    assert "not +0.0" in error
    must_fail("channel_select", Wrong(torch.ops.maskfuse, "channel_select", negative_zero))


def test_operands_are_the_same_each_time_and_no_random_state_is_touched():
    before = torch.get_rng_state()
    first, second = (compare.Operands(CPU).normal(3, 4, dtype=torch.float32) for _ in range(2))
    assert torch.equal(first, second)
    checks.failure(CHECKS["channel_gather"], torch.ops.maskfuse, CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["masked_linear", "masked_conv2d", "channel_scatter", "mask"])
def test_runs_in_no_mode_and_leaves_all_as_it_is(name):
    class Counts(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counts.count += 1
            return func(*args, **(kwargs or {}))

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        with (
            Counts(),
            torch.device("meta"),
            torch.autocast("cpu", torch.bfloat16),
            torch.inference_mode(),
            maskfuse.use_backend("reference"),
        ):
            assert checks.failure(CHECKS[name], torch.ops.maskfuse, CPU) is None
            assert Counts.count == 0
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert backends.requested() == ("reference",) and torch.empty(1).is_meta and not checks.checking()
        with torch.enable_grad():
            assert checks.failure(CHECKS[name], torch.ops.maskfuse, CPU) is None
            assert torch.is_grad_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(default)


def test_packed_bits_are_those_of_masks():
    dense = torch.rand(9, 71) < 0.5
    assert torch.equal(compare.packed(dense), Mask.from_dense(dense).bits)


def test_ops_without_a_kernel_are_skipped():
    assert not compare.has_kernel(torch.ops.maskfuse, "mask_lists", CPU)
    assert not compare.has_kernel(torch.ops.maskfuse, "no_such_op", CPU)
    check = checks.Check("masked_conv2d", ("masked_conv2d", "no_such_op"), CHECKS["masked_conv2d"].run)
    assert not check.applies(torch.ops.maskfuse, CPU) and not check.applies(torch.ops.maskfuse, GPU)


def test_every_op_of_the_cuda_backend_has_its_checks():
    for op in backends._backends["cuda"].ops:
        names = checks.NEEDS.get(op, (op,))
        assert set(names) <= set(CHECKS), op
        assert names or op == "gated_conv2d"
