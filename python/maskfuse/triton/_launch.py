"""How a Triton kernel gets from this package to a device: registration as an op, tuning, launch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .. import ops as _ops  # whose schemas are taken over, and whose fake implementations
from ._device import architecture
from ._planner import Configs

NAMESPACE = "maskfuse_triton"

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels, on the host (TRITON_INTERPRET=1 when this package was imported)."""

assert _ops.library_info()
# What makes a launch part of a graph; on torch 2.11 it takes no interpreted kernel. Compilers' caches look for calls of
# this name in an op, to know by which kernels' sources they are to be told apart.
wrap_triton: Callable[[Any], Any] = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_launching = threading.Lock()

listed: dict[Any, tuple[Configs, tuple[str, str, str]]] = {}
"""Tuners, and the family and the names of sizes that each was made of: what is compiled ahead of time."""


def schema_of(name: str) -> str:
    """The schema of `maskfuse::name` without the name: the Triton op of the same stem has the same one."""
    return str(getattr(torch.ops.maskfuse, name).default._schema).split(name, 1)[1]


def op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a function as the op of its name in this namespace.

    `torch.compile` looks into it and meets the kernels; interpreted, it is opaque.
    """
    name = function.__name__
    if not INTERPRETED:
        torch.library.triton_op(f"{NAMESPACE}::{name}", function, mutates_args=())
        return function
    opaque = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema_of(name))
    opaque.register_fake(lambda *args: getattr(torch.ops.maskfuse, name)(*args))
    return function


def plain_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers what prepares a mask or a weight, and is never traced."""
    name = function.__name__
    _library.define(name + schema_of(name))
    _library.impl(name, function, "CompositeExplicitAutograd")
    return function


def tuned(kernel: Any, configs: Configs, names: tuple[str, str, str], key: list[str]) -> Any:
    """The kernel with the fastest of a family's configurations: each is timed once for each key, and the result is kept
    on disk. Which one wins does not change a result's bits: all of a family cut the depth of a product alike.

    Args:
        kernel: what `triton.jit` gave.
        configs: the family (`_planner.py`); of it, what is listed for the current device.
        names: the kernel's parameters that a tile's three sizes go into.
        key: arguments whose values are timed apart, besides the device and the operands' dtypes.
    """
    found = [
        triton.Config(dict(zip(names, tile, strict=True)), num_warps=warps, num_stages=stages)
        for tile, warps, stages in configs[architecture(torch.device("cuda"))]
    ]
    if INTERPRETED:  # nothing to time
        return triton.autotune(found[:1], [])(kernel)
    tuner = triton.autotune(found, [*key, "ARCH"], cache_results=True)(kernel)
    listed[tuner] = configs, names
    return tuner


@contextlib.contextmanager
def _on_device_of(args: tuple[Any, ...]) -> Iterator[None]:
    device = next(a.device for a in args if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        yield


def launch(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
    """Runs what `wrap_triton` gave on the device of the first tensor; a traced call becomes part of the graph."""
    if type(kernel).__name__ == "TraceableTritonKernelWrapper":
        kernel[grid](*args, **meta)
        return
    with _launching, _on_device_of(args):  # a tuner keeps its arguments in itself: one thread at a time
        if hasattr(kernel, "configs") and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            # Timing would end the capture. Any configuration gives the same bits.
            best = getattr(kernel, "best_config", kernel.configs[0])
            kernel.fn[grid](*args, **meta, **best.all_kwargs())
        else:
            kernel[grid](*args, **meta)


def opaque(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a step of an op that compilers are not to look into. Returns what calls it."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        step = torch.library.custom_op(f"{NAMESPACE}::{function.__name__}", function, mutates_args=(), schema=schema)
        step.register_fake(fake)
        return step

    return register
