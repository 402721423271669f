"""What `bench/run.py` runs: one line a benchmark. A name is also that of its JSON file.

This process has OMP_PROC_BIND unset, unlike `timing`'s: what it starts would else inherit a single core.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from records import ROOT

PEERS = ROOT / ".venv-peers/bin/python"  # bench/peers_masked_linear.py says how it is made
RAW = ROOT / "build/cmake/release"
QUICK = ("--quick", "--rounds", "1", "--budget", "0")


@dataclass(frozen=True)
class Benchmark:
    """A script of bench/ with its arguments. `why_not` says why it cannot run here, and nothing where it can."""

    name: str
    command: tuple[str, ...]
    what: str
    why_not: Callable[[], str] = lambda: ""
    quick: tuple[str, ...] = QUICK  # arguments for few cases, whose figures mean nothing
    python: Callable[[], Path] = lambda: Path(sys.executable)

    def arguments(self, output: Path, quick: bool) -> list[str]:
        """The whole command line."""
        script, *rest = self.command
        more = [word for word in self.quick if word not in rest] if quick else []
        return [str(self.python()), f"bench/{script}", *rest, *more, "--output", str(output)]

    def environment(self) -> dict[str, str]:
        """Another Python than this one finds the package in place."""
        here = dict(os.environ)
        if self.python() != Path(sys.executable):
            here["PYTHONPATH"] = str(ROOT / "python")
        return here


def _package(*names: str) -> Callable[[], str]:
    def why_not() -> str:
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else ""

    return why_not


def _engines() -> bool:
    return any(importlib.util.find_spec(name) for name in ("deepsparse", "sparseprop"))


def _no_engines() -> str:
    return "" if PEERS.exists() or _engines() else "DeepSparse, SparseProp not installed: bench/requirements-peers.txt"


def _peers_python() -> Path:
    return PEERS if PEERS.exists() else Path(sys.executable)


def no_raw() -> str:
    return "" if list(RAW.glob("maskfuse_raw*")) else "maskfuse_raw is not built: make build/cmake/release/.raw"


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "torch sees no GPU here"


def _no_gloo() -> str:
    there = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    return "" if there else "torch was built without gloo"


LINEAR = "bench_masked_linear.py"
GPU = ("gpu.py", "--skip-tests", "--in-place")

BENCHMARKS = (
    Benchmark("yardsticks", ("yardsticks.py",), "what a product and a copy reach here"),
    Benchmark("masked_linear", (LINEAR,), "against F.linear, x @ (w * m), torch's CSR"),
    Benchmark("masked_linear_bfloat16", (LINEAR, "--quick", "--dtype", "bfloat16"), "the same in bfloat16, one shape"),
    Benchmark("masked_linear_float16", (LINEAR, "--quick", "--dtype", "float16"), "the same in float16, one shape"),
    Benchmark(
        "peers_masked_linear", ("peers_masked_linear.py",), "DeepSparse, SparseProp", _no_engines, QUICK, _peers_python
    ),
    Benchmark("masked_conv2d", ("bench_masked_conv2d.py",), "against F.conv2d in both formats"),
    Benchmark(
        "peers_masked_conv2d", ("peers_masked_conv2d.py",), "DeepSparse, SparseProp", _no_engines, QUICK, _peers_python
    ),
    Benchmark("channel_gather", ("bench_channel_gather.py",), "gather, scatter, select against indexing and copies"),
    Benchmark("gated_linear", ("bench_gated_linear.py",), "against F.linear(x, w * sigmoid)"),
    Benchmark("compact", ("bench_compact.py",), "compact layers against masked and dense ones"),
    Benchmark("mask_gradient", ("bench_mask_gradient.py",), "a frozen part against hooks and where"),
    Benchmark("models", ("models.py",), "ResNet-18 on digits", _package("sklearn")),
    Benchmark("transformers_models", ("transformers_models.py",), "BERT's layers, ResNet-18", _package("transformers")),
    Benchmark("memory", ("memory.py",), "bytes of training dense, masked and compact layers"),
    Benchmark("allreduce", ("bench_allreduce.py",), "averaged gradients, two processes", _no_gloo),
    Benchmark("microbench", ("microbench.py",), "raw kernels, one instruction set at a time", no_raw),
    Benchmark("gpu_rows", GPU, "everything on a GPU", _no_gpu, ("--quick", "--minutes", "1")),
)
