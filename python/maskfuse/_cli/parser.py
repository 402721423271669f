"""The command line: commands and their options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .._self_test.record import version
from . import bench, commands, info


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _batch(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _threads(text: str) -> int:
    value, most = _whole(text), os.cpu_count() or 1
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be 1 to {most}, the processors of this machine, got {value}")
    return value


def parser() -> argparse.ArgumentParser:
    """Each command's function is in `function`."""
    whole = argparse.ArgumentParser(prog="python -m maskfuse", description="Networks with masked weights, faster.")
    whole.add_argument("--version", action="version", version=f"maskfuse {version()}")
    several = whole.add_subparsers(dest="command", required=True)

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = several.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
        added.set_defaults(function=function)
        return added

    command("info", info.run, "what is built, what is loaded, and why something is not")
    command("self-test", commands.self_test, "every kernel of this machine against plain PyTorch, once, small")

    figures = command("bench", bench.run, "figures of this machine: masked layers against plain PyTorch")
    figures.add_argument("--quick", action="store_true", help="few cases, in less than a minute")
    figures.add_argument("--threads", type=_threads, metavar="N", help="of the CPU (torch's own number)")
    figures.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    figures.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to a file, too")

    report = command("report", commands.report, "what is masked in a saved state dict, and what it takes")
    report.add_argument("file", type=Path, help="of torch.save(model.state_dict(), FILE), or FILE.safetensors")
    report.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of masks and densities (matplotlib)")
    report.add_argument(
        "--batch", type=_batch, metavar="N", default=1, help="rows, for the kernels of linear layers (1)"
    )

    demo = command("demo", commands.demo, "train, mask and fine-tune on handwritten digits, and measure")
    demo.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path("out"), help="folder for the plot and the JSON (out)"
    )
    return whole
