"""Compiles every Triton kernel ahead of time, for GPUs that need not be here, and prints what came of it as JSON.

    python tests/triton_compile.py [--targets sm_80,sm_90,gfx942]

Calls every op on tensors of the host whose launches are recorded and not made, then compiles what was recorded: each
kernel as it was called (dtypes, what is known of sizes), in every configuration that its family lists for the target.
A line a binary: kernel, target, dtype, configuration, shared memory, registers and spills (NVIDIA), instructions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import maskfuse.triton as backend
import torch
import triton
from maskfuse.triton import _conv2d, _launch, _linear, channel_gather, channel_scatter, mask, masked_linear_decode
from torch._higher_order_ops.triton_kernel_wrap import TraceableTritonKernelWrapper
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), "sm80"),
    "sm_90": (GPUTarget("cuda", 90, 32), "sm90"),
    "gfx942": (GPUTarget("hip", "gfx942", 64), "amd"),
}
INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "cp.async.cg", "ldmatrix")


def operand(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def bits(rows: int, columns: int) -> torch.Tensor:
    return torch.empty((rows, -(-columns // 32)), dtype=torch.int32)


def lists(rows: int, taps: int, channels: int) -> list[torch.Tensor]:
    shapes = [
        (-(-rows // 128), 1 + taps * -(-channels // 64)),
        (-(-channels // 128), 1 + taps * -(-rows // 64)),
    ]
    plan = [torch.empty(shape, dtype=torch.int32) for shape in shapes]
    return plan if taps == 1 else [*plan, torch.empty((rows, taps * -(-channels // 32)), dtype=torch.int32)]


def linear(dtype: torch.dtype) -> Iterator[Any]:
    """Large, small and few rows; a depth in parts; sizes that nothing is known of."""
    ops = backend.masked_linear
    for m, n, k in ((4096, 1024, 1024), (128, 256, 512), (8, 256, 4096), (65, 67, 69)):
        x, w, g, b = (operand(dtype, *shape) for shape in ((m, k), (n, k), (m, n), (n,)))
        for plan in ([], lists(n, 1, k)) if k > 69 else ([],):
            yield lambda: ops.masked_linear(x, w, bits(n, k), plan, b)  # noqa: B023
            yield lambda: ops.masked_linear_input_grad(g, w, bits(n, k), plan)  # noqa: B023
        yield lambda: ops.masked_linear_weight_grad(g, x, bits(n, k), [])  # noqa: B023
        if k == 69:
            continue
        soft, gated = backend.soft_masked_linear, backend.gated_linear
        yield lambda: soft.soft_masked_linear(x, w, w, b)  # noqa: B023
        yield lambda: soft.soft_masked_linear_input_grad(g, w, w)  # noqa: B023
        yield lambda: soft.soft_masked_linear_weight_grad(g, x, w)  # noqa: B023
        yield lambda: gated.gated_linear(x, w, w, b)  # noqa: B023
        yield lambda: gated.gated_linear_input_grad(g, w, w)  # noqa: B023
        yield lambda: gated.gated_linear_weight_grad(g, x, w, w)  # noqa: B023


def decode(dtype: torch.dtype) -> Iterator[Any]:
    for inp in (4096, 1 << 17):  # whose blocks begin in 16 bits, and in 32
        packed = masked_linear_decode.Packed(
            operand(dtype, 64 * inp),
            torch.empty(128, dtype=torch.int64),
            torch.empty(
                (128, inp // 64), dtype=torch.int16 if inp <= 1 << 16 and dtype != torch.float64 else torch.int32
            ),
            operand(dtype, 0, 128, inp),
        )
        x, b = operand(dtype, 4, inp), operand(dtype, 128)
        yield lambda: masked_linear_decode.decode(x, bits(128, inp), packed, 128, b)  # noqa: B023


def conv2d(dtype: torch.dtype) -> Iterator[Any]:
    masked, gathered = backend.masked_conv2d, backend.gathered_conv2d
    for images, inp, out, side, kernel, stride in (
        (32, 128, 256, 28, 3, 1),
        (2, 64, 64, 14, 1, 1),
        (1, 19, 33, 9, 3, 2),
    ):
        padding = kernel // 2
        to = (side + 2 * padding - kernel) // stride + 1
        geometry = ([stride] * 2, [padding] * 2, [1, 1])
        x = operand(dtype, images, inp, side, side)
        w, b = operand(dtype, out, inp, kernel, kernel), operand(dtype, out)
        g, words = operand(dtype, images, out, to, to), bits(out, inp * kernel * kernel)
        for plan in ([], lists(out, kernel * kernel, inp)):
            yield lambda: masked.masked_conv2d(x, w, words, plan, b, *geometry, 1)  # noqa: B023
            yield lambda: masked.masked_conv2d_input_grad(g, w, words, plan, [side] * 2, *geometry, 1)  # noqa: B023
        yield lambda: masked.masked_conv2d_weight_grad(g, x, words, [], [kernel] * 2, *geometry, 1)  # noqa: B023
        of = bits(images, inp).zero_()
        yield lambda: gathered.gathered_conv2d(x, w, of, b, *geometry)  # noqa: B023
        yield lambda: gathered.gathered_conv2d_input_grad(g, w, of, [side] * 2, *geometry)  # noqa: B023
        yield lambda: gathered.gathered_conv2d_weight_grad(g, x, of, [kernel] * 2, *geometry)  # noqa: B023


def channels(dtype: torch.dtype) -> Iterator[Any]:
    index, samples = torch.arange(16), torch.arange(4)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for side in (4, 56):
            x = operand(dtype, 8, 64, side, side).contiguous(memory_format=memory_format)
            y = operand(dtype, 4, 16, side, side).contiguous(memory_format=memory_format)
            yield lambda: backend.channel_gather.channel_gather(x, index, 64, samples, 8)  # noqa: B023
            yield lambda: backend.channel_gather.channel_gather(x, index, 64, None, 8)  # noqa: B023
            yield lambda: backend.channel_scatter.channel_scatter(y, index, 64, samples, 8, True)  # noqa: B023
            yield lambda: backend.channel_scatter.channel_scatter(y, index, 64, None, 4, True)  # noqa: B023
    flags = torch.zeros((8, 64), dtype=torch.bool)
    yield lambda: backend.channel_select.channel_select(operand(dtype, 8, 64, 7, 7), flags, 16)


def masks(_: torch.dtype) -> Iterator[Any]:
    yield lambda: mask.mask_pack(torch.zeros((100, 100), dtype=torch.bool))
    yield lambda: mask.mask_unpack(bits(128, 4096), 4096)


# What is compiled for which dtypes: the half types alike, but for their conversions.
GROUPS = {
    linear: (torch.bfloat16, torch.float16, torch.float32, torch.float64),
    decode: (torch.bfloat16, torch.float16, torch.float32, torch.float64),
    conv2d: (torch.bfloat16, torch.float16, torch.float32, torch.float64),
    channels: (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64),
    masks: (torch.bool,),
}


def recorded(group: Any, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(kernel or tuner, arguments, meta-parameters) of every launch of a group's calls."""
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
        found.append((kernel.kernel if isinstance(kernel, TraceableTritonKernelWrapper) else kernel, args, meta))

    places = (_linear, _conv2d, mask, channel_gather, channel_scatter, masked_linear_decode)
    with mock.patch.multiple(_launch, launch=record):
        patches = [mock.patch.object(place, "launch", record) for place in places]
        for patch in patches:
            patch.start()
        try:
            for call in group(dtype):
                call()
        finally:
            for patch in patches:
                patch.stop()
    return found


def configurations(kernel: Any, listed_for: str) -> tuple[Any, list[dict[str, Any]]]:
    """The function below a tuner, and what it is to be compiled with for an architecture."""
    if not hasattr(kernel, "configs"):
        return kernel, [{}]
    configs, names = _launch.listed[kernel]
    return kernel.fn, [
        {**dict(zip(names, tile, strict=True)), "num_warps": warps, "num_stages": stages}
        for tile, warps, stages in configs[listed_for]
    ]


def compiled(function: Any, args: tuple[Any, ...], meta: dict[str, Any], target: GPUTarget) -> Any:
    """What Triton's own launcher would compile for these arguments, on a device of this kind."""
    made = make_backend(target)
    bound, specialization, _ = create_function_from_signature(function.signature, function.params, made)(*args, **meta)
    options, signature, constants, attributes = function._pack_args(made, meta, bound, specialization, None)
    key = (function.__name__, str(signature), str(constants), str(attributes), str(options))
    return key, lambda: triton.compile(
        ASTSource(function, signature, constants, attributes), target=target, options=options.__dict__
    )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of the stack, which are those spilled, of a binary for NVIDIA's devices."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.submodule_search_locations is not None
    tool = Path(spec.submodule_search_locations[0], "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.findall(r"REG:(\d+)", text)[0]), "stack": int(re.findall(r"STACK:(\d+)", text)[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--groups", default=",".join(group.__name__ for group in GROUPS))
    parser.add_argument("--dtypes", default="")
    parser.add_argument("--first", action="store_true", help="the first configuration of each family alone")
    options = parser.parse_args()
    assert not backend.INTERPRETED, "the interpreter compiles nothing: unset TRITON_INTERPRET"
    seen: set[Any] = set()
    for group, dtypes in GROUPS.items():
        if group.__name__ not in options.groups.split(","):
            continue
        for dtype in dtypes:
            short = str(dtype).removeprefix("torch.")
            if options.dtypes and short not in options.dtypes.split(","):
                continue
            for kernel, args, meta in recorded(group, dtype):
                for name in options.targets.split(","):
                    target, listed_for = TARGETS[name]
                    function, configs = configurations(kernel, listed_for)
                    for config in configs[: 1 if options.first else None]:
                        key, make = compiled(function, args, {**meta, **config}, target)
                        if (name, key) in seen:
                            continue
                        seen.add((name, key))
                        row: dict[str, Any] = {"kernel": function.__name__, "target": name, "dtype": short}
                        row["config"] = config
                        row["meta"] = meta
                        try:
                            binary = make()
                        except Exception as error:
                            row["error"] = f"{type(error).__name__}: {str(error)[:2000]}"
                        else:
                            row["shared"] = binary.metadata.shared
                            if "ptx" in binary.asm:
                                row |= resources(binary.asm["cubin"])
                                row |= {word: binary.asm["ptx"].count(word) for word in INSTRUCTIONS}
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
