"""What several test files need: the CPU levels and backends at hand, tolerances, NaN-safe comparison."""

from __future__ import annotations

import importlib.util
import os
import zlib

import maskfuse
import pytest
import torch
from maskfuse._accuracy import sum_bound


def _load_profiles() -> None:
    """The same examples in every run; `make fuzz` draws others, of which tests/fuzz.py prints the seed."""
    from hypothesis import HealthCheck, settings

    any_pace = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
    settings.register_profile("ci", derandomize=True, database=None, max_examples=40, print_blob=True, **any_pace)
    settings.register_profile("fuzz", database=None, max_examples=100, print_blob=True, **any_pace)
    settings.load_profile("ci")


if importlib.util.find_spec("hypothesis") is not None:  # not beside every GPU
    _load_profiles()

# Where there is no GPU, Triton's interpreter runs the Triton kernels, if it is told before anything imports triton.
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton_interpreter

    triton_interpreter.patch_once_a_launch()

LEVELS = maskfuse.build_info()["cpu_levels"]
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
# A backend under test is an entry here, not a copy of the tests. These take tensors on the CPU.
BACKENDS = [f"cpu-{level}" for level in LEVELS] + ["triton"] * INTERPRETED + ["reference"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Runs the test on each backend, and on each CPU level of the `cpu` backend."""
    name, _, level = request.param.partition("-")
    before = torch.ops.maskfuse.set_cpu_level(level) if level else None
    with maskfuse.use_backend(name):
        yield request.param
    if before is not None:
        torch.ops.maskfuse.set_cpu_level(before)


def few(backend: str, *values: object, of: int = 1) -> tuple:
    """The values that a test loops over; the first ones of them in Triton's interpreter, which is a thousand times
    slower than a kernel."""
    return values[:of] if backend == "triton" else values


def one_of(request: pytest.FixtureRequest, backend: str, many: int) -> None:
    """Skips all but a share of a test's cases in Triton's interpreter: always the same ones, spread over all."""
    if backend == "triton" and zlib.crc32(request.node.name.encode()) % many:
        pytest.skip(f"one case of {many} in the interpreter")


def thorough(backend: str) -> dict[str, bool]:
    """How gradcheck is called: element by element, or where that takes too long along a random direction."""
    return {"fast_mode": backend == "triton"}


def once(backend: str, kernel: str, first: str) -> None:
    """Skips a test of the CPU's kernels by name on other backends, but for the first of them."""
    if not backend.startswith("cpu") and kernel != first:
        pytest.skip("has no kernel of that name")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_kernels(request):
    """A test that is given a machine is about its kernels: none of their products is left to torch's library, or with
    `library` "always" all of them."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    machine, library = given.get("machine"), given.get("library", "never")
    if machine is None or machine.name not in ("simt", "cuda"):
        if library == "always":
            pytest.skip("leaves nothing to torch's library")
        yield
        return
    before = machine.ops.use_masked_library(library)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
    machine.ops.use_masked_library(before)


def assert_sums_close(got, want, magnitude, dtype: torch.dtype, terms: int, products_rounded: bool = False) -> None:
    """Compares sums of `terms` products with exact ones, each within its own bound: `sum_bound`."""
    bound = sum_bound(want, magnitude, dtype, terms, products_rounded)
    error = (got.double() - want).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"an error is {worst:.3g} times its bound: {dtype}, {terms} terms, shape {list(got.shape)}"


def assert_norm_close(got, want, magnitude, dtype: torch.dtype, *_) -> None:
    """Compares with exact sums in norm: what a library's algorithms round is theirs to choose."""
    unit = torch.finfo(dtype).eps
    error, norm = (got.double() - want).norm().item(), magnitude.norm().item()
    assert error <= (4 * unit if unit > 1e-4 else 1000 * unit) * norm, f"error {error:.3g} in norm, of {norm:.3g}"


def pytest_report_header():
    info = maskfuse.build_info()
    return f"maskfuse {info['version']}, torch {info['torch']}, CPU level {info['cpu_level']} of {LEVELS}"
