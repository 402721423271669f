"""What several test files need: the CPU levels and backends at hand, tolerances, NaN-safe comparison."""

from __future__ import annotations

import maskfuse
import pytest
import torch
from maskfuse._accuracy import sum_bound

LEVELS = maskfuse.build_info()["cpu_levels"]
# A backend under test is an entry here, not a copy of the tests.
BACKENDS = [f"cpu-{level}" for level in LEVELS] + ["reference"]
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


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_sums_close(got, want, magnitude, dtype: torch.dtype, terms: int, products_rounded: bool = False) -> None:
    """Compares sums of `terms` products with exact ones, each within its own bound: `sum_bound`."""
    bound = sum_bound(want, magnitude, dtype, terms, products_rounded)
    error = (got.double() - want).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"an error is {worst:.3g} times its bound: {dtype}, {terms} terms, shape {list(got.shape)}"


def pytest_report_header():
    info = maskfuse.build_info()
    return f"maskfuse {info['version']}, torch {info['torch']}, CPU level {info['cpu_level']} of {LEVELS}"
