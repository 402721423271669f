"""What `gpu.py` measures: a table. Nothing here needs torch, so that a row is on record even where nothing runs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Target:
    """At least how many times faster than `against`, and where the hardware ends."""

    against: str
    least: float
    limit: float | None = None


@dataclass(frozen=True)
class Row:
    """One comparison. `calls` is module:function; it gets a `gpu_calls.Setting` and `options`, and draws operands."""

    name: str
    group: str
    calls: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    unit: str = "TFLOP/s"  # what the printed table shows as achieved; the JSON has both
    compiles: bool = False


def _linear() -> list[Row]:
    dense, layer = "F.linear", "4096x4096"
    rows = [
        Row(
            f"masked forward, {layer}, 8192 tokens, {masked} %",
            "linear",
            "gpu_linear:forward",
            {"tokens": 8192, "masked": masked},
            (Target(dense, 0.95, 1.0),),
        )
        for masked in (50, 90)
    ]
    rows += [
        Row(
            f"packed decode, 8192x8192, batch {tokens}, {masked} %",
            "decode",
            "gpu_linear:decode",
            {"tokens": tokens, "masked": masked},
            (Target(dense, least, limit),),
            unit="TB/s",
        )
        for masked, least, limit in ((50, 1.5, 1.78), (70, 2.2, 2.76), (90, 3.5, 6.15))
        for tokens in (1, 16)
    ]
    rows += [
        Row(
            f"channel mask, {what}, {layer}, 8192 tokens, gather included",
            "structure",
            "gpu_linear:channels",
            {"tokens": 8192, "half_of_outputs": both},
            (Target(dense, least, limit),),
        )
        for what, both, least, limit in (("half of inputs", False, 1.8, 2.0), ("half x half", True, 3.4, 4.0))
    ]
    rows += [
        Row(
            f"block mask 128x64, {layer}, 8192 tokens, {masked} %",
            "structure",
            "gpu_linear:blocks",
            {"tokens": 8192, "masked": masked},
            (Target(dense, least, limit),),
        )
        for masked, least, limit in ((50, 1.7, 2.0), (90, 6.5, 10.0))
    ]
    rows += [
        Row(
            f"weight gradient, mask in the epilogue, {layer}, {tokens} tokens, 50 %",
            "weight_grad",
            "gpu_linear:weight_grad",
            {"tokens": tokens, "masked": 50},
            (Target("dy.T @ x", 0.98, 1.0),),
        )
        for tokens in (8192, 1024)
    ]
    return rows


def _channels() -> list[Row]:
    image = "128x256x56x56, half of the channels"
    rows = []
    for layout in ("nchw", "channels_last"):
        for what, function, others in (
            ("channel gather", "gather", (Target("copy", 0.85, 1.0), Target("index_select", 3.0))),
            ("channel scatter", "scatter", (Target("copy", 0.85, 1.0), Target("index_add_", 4.0))),
            ("gather's backward", "gather_backward", (Target("copy", 0.85, 1.0), Target("index_add_", 4.0))),
            ("scatter's backward", "scatter_backward", (Target("copy", 0.85, 1.0), Target("index_select", 3.0))),
        ):
            name = f"{what}, {image}, {layout}"
            rows.append(Row(name, "channels", f"gpu_channels:{function}", {"layout": layout}, others, unit="TB/s"))
    return rows


def _conv() -> list[Row]:
    def conv(what: str, function: str, **options: Any) -> Row:
        return Row(f"{what}, channels_last, batch 64", "conv", f"gpu_conv:{function}", options)

    small, wide = {"channels": 256, "kernel": 3}, {"channels": 512, "kernel": 1}
    return [
        conv("conv 3x3 forward, 256 channels, 28x28, 50 %", "forward", **small),
        conv("conv 1x1 forward, 512 channels, 28x28, 50 %", "forward", **wide),
        conv("conv 3x3 forward + backward, 256 channels, 28x28, 50 %", "step", **small),
        conv("conv 3x3 forward, half of 256 channels, 28x28", "forward", **small, half_of_inputs=True),
        conv("conv 3x3 forward, each image's half of 256 channels, 28x28", "of_channels", **small, each=1),
        conv("conv 3x3 forward, each image's 2 of 4 groups of 64 channels, 28x28", "of_channels", **small, each=64),
        conv("conv 1x1 forward, each image's 4 of 8 groups of 64 channels, 28x28", "of_channels", **wide, each=64),
        conv(
            "conv 3x3 forward + backward, each image's 2 of 4 groups of 64 channels, 28x28",
            "of_channels_step",
            **small,
            each=64,
        ),
    ]


def _types() -> list[Row]:
    def forward(what: str, **options: Any) -> Row:
        name = f"masked forward, 4096x4096, {what}, 50 %"
        return Row(name, "types", "gpu_linear:forward", {"masked": 50, **options})

    return [
        forward("8192 tokens, float16", tokens=8192, dtype="float16"),
        forward("8192 tokens, float32", tokens=8192, dtype="float32"),
        forward("256 tokens", tokens=256),
        forward("16 tokens, not packed", tokens=16),
    ]


def _compiled() -> list[Row]:
    return [
        Row(
            "masked forward + backward, 4096x4096, 1024 tokens, 50 %",
            "compiled",
            "gpu_linear:step",
            {"tokens": 1024, "masked": 50},
            (Target("torch.compile", 1.25, 1.33),),
            compiles=True,
        ),
        Row(
            "gated forward + both gradients, 4096x4096, 1024 tokens",
            "compiled",
            "gpu_linear:gated_step",
            {"tokens": 1024},
            (Target("torch.compile", 1.3, 1.4),),
            compiles=True,
        ),
    ]


def _triton() -> list[Row]:
    """Triton's kernels in the rows of the targets, within 1.3 times of the compiled ones' time."""
    layer, near = "4096x4096", Target("cuda kernels", 0.77)

    def again(what: str, function: str, *more: Target, compiles: bool = False, **options: Any) -> Row:
        return Row(
            f"triton: {what}", "triton", "gpu_triton:again", {"function": function, **options}, (near, *more),
            compiles=compiles,
        )  # fmt: skip

    dense = Target("F.linear", 1.0)
    return [
        again(f"masked forward, {layer}, 8192 tokens, 50 %", "forward", tokens=8192, masked=50),
        again(f"channel mask, half x half, {layer}, 8192 tokens", "channels", dense, tokens=8192, half_of_outputs=True),
        again(f"block mask 128x64, {layer}, 8192 tokens, 50 %", "blocks", dense, tokens=8192, masked=50),
        again(f"block mask 128x64, {layer}, 8192 tokens, 90 %", "blocks", dense, tokens=8192, masked=90),
        *[
            Row(
                f"triton: packed decode, 8192x8192, batch 16, {masked} %",
                "triton",
                "gpu_triton:decode",
                {"tokens": 16, "masked": masked},
                (Target("F.linear", least),),
                unit="TB/s",
            )
            for masked, least in ((50, 1.15), (90, 2.69))  # the compiled kernels' targets over 1.3
        ],
        again(
            f"masked forward + backward, {layer}, 1024 tokens, 50 %",
            "step",
            Target("torch.compile", 0.96),
            compiles=True,
            tokens=1024,
            masked=50,
        ),
        again(
            f"gated forward + both gradients, {layer}, 1024 tokens",
            "gated_step",
            Target("torch.compile", 1.0),
            compiles=True,
            tokens=1024,
        ),
    ]


# In the order in which they are measured: what compiles takes longest, and comes last.
ROWS = [*_linear(), *_channels(), *_conv(), *_types(), *_triton(), *_compiled()]


def module_of(path: Path) -> ModuleType:
    """A module from a file, importable by its name from then on."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def all_rows(more: Path | None = None) -> list[Row]:
    """ROWS, and those of another file that has a ROWS of its own."""
    rows = [*ROWS, *(module_of(more).ROWS if more else [])]
    assert len({row.name for row in rows}) == len(rows), "rows need names of their own"
    return rows
