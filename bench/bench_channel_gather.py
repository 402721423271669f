"""channel_gather and channel_scatter on the CPU against a copy, and against the indexing that they replace.

    gather      half of the channels, against a clone that moves as many bytes
    scatter     the same channels back: reads them and writes all, against a clone that moves as many bytes
    batch       half of the channels of half of the samples, against x[b][:, c]
    select      half of each sample's channels, its own, by a mask: against torch.gather on their numbers
    backward    of the gather alone, against that of x[:, c], which is index_put_(accumulate=True)

A clone allocates its result, as these ops do. In `gather` and `scatter` each candidate reads one input over and over
(source: cache), or inputs in turn of which it reads 64 MiB in all (source: memory).
Ratios above 1 mean that maskfuse is faster; GB/s count what is read and what is written. `--check` exits with 1 where a
target is missed, and says which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import channel_gather, channel_scatter, channel_select

SHAPES = [(8, 64, 56, 56), (8, 256, 14, 14), (32, 512, 7, 7), (8, 512, 28, 28)]
MORE_SHAPES = [(256, 2048, 1, 1), (32, 2048, 4, 4), (32, 256, 56, 56)]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
LEAST = {"gather": 0.85, "scatter": 0.85, "batch": 4.0, "backward": 3.0, "select": 1.0}
AGAINST = {
    "gather": "vs clone",
    "scatter": "vs clone",
    "batch": "vs x[b][:, c]",
    "backward": "vs x[:, c]",
    "select": "vs torch.gather",
}


SOURCES = {"cache": 1, "memory": 64 << 20}  # bytes that a candidate reads of inputs in turn


def in_turn(call: Callable[[torch.Tensor], object], inputs: list[torch.Tensor]) -> Callable[[], object]:
    turn = itertools.cycle(inputs)
    return lambda: call(next(turn))


def against_clone(
    section: str, shape: tuple[int, ...], layout: str, c: torch.Tensor, source: str
) -> tuple[dict[str, Callable[[], object]], int]:
    """The calls to compare, and the bytes that each reads and writes."""
    channels = shape[1]
    inner = (shape[0], len(c), *shape[2:]) if section == "scatter" else shape
    small, full = torch.Size((shape[0], len(c), *shape[2:])).numel(), torch.Size(shape).numel()
    moved = 4 * (2 * small if section == "gather" else small + full)

    def inputs(*size: int, read: int) -> list[torch.Tensor]:
        count = -(-SOURCES[source] // (4 * read))
        fits = FORMATS[layout] if len(size) == 4 else torch.contiguous_format
        return [torch.randn(size).contiguous(memory_format=fits) for _ in range(count)]

    mine = inputs(*inner, read=small)
    calls = {"clone": in_turn(torch.clone, inputs(moved // 8, read=moved // 8))}
    if section == "gather":
        calls["maskfuse"] = in_turn(lambda x: channel_gather(x, c), mine)
        calls["x[:, c]"] = in_turn(lambda x: x[:, c], mine)
    else:
        calls["maskfuse"] = in_turn(lambda y: channel_scatter(y, c, channels), mine)
    return calls, moved


def against_indexing(
    section: str, shape: tuple[int, ...], layout: str, c: torch.Tensor, b: torch.Tensor
) -> tuple[dict[str, Callable[[], object]], int]:
    """The same for what plain indexing does."""
    x = torch.randn(shape).to(memory_format=FORMATS[layout])
    if section == "batch":
        calls = {"x[b][:, c]": lambda: x[b][:, c], "maskfuse": lambda: channel_gather(x, c, b)}
        return calls, 8 * x[b][:, c].numel()
    if section == "select":
        chosen = torch.rand(shape[:2]).topk(len(c)).indices.sort().values
        mask = torch.zeros(shape[:2], dtype=torch.bool).scatter_(1, chosen, True)
        index = chosen.reshape(*chosen.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *shape[2:])
        calls = {"torch.gather": lambda: x.gather(1, index), "maskfuse": lambda: channel_select(x, mask, len(c))}
        return calls, 8 * index.numel()
    leaf = x.requires_grad_()
    ours, theirs = channel_gather(leaf, c), leaf[:, c]
    grad = torch.randn_like(ours)
    calls = {
        "x[:, c]": lambda: torch.autograd.grad(theirs, leaf, grad, retain_graph=True),
        "maskfuse": lambda: torch.autograd.grad(ours, leaf, grad, retain_graph=True),
    }
    return calls, 4 * (grad.numel() + x.numel())


def case(section: str, shape: tuple[int, ...], layout: str, order: str, source: str, options) -> dict:
    """One line of the result: medians, ratios, and what was achieved."""
    samples, channels = shape[:2]
    c, b = torch.randperm(channels)[: channels // 2], torch.randperm(samples)[: samples // 2]
    if order == "sorted":
        c, b = c.sort().values, b.sort().values
    if section in ("gather", "scatter"):
        calls, moved = against_clone(section, shape, layout, c, source)
    else:
        calls, moved = against_indexing(section, shape, layout, c, b)
    times = timing.compare(calls, options.budget)
    result = {"section": section, "shape": "x".join(map(str, shape)), "layout": layout, "order": order}
    result["source"] = source
    result["targeted"] = shape in SHAPES and layout == "nchw"
    result |= timing.measured(times, unit="us")
    result["GB/s"] = moved / times["maskfuse"].median / 1e9
    return result


def main() -> int:
    parser = timing.arguments(__doc__, "targeted shapes in NCHW, one order of the channels")
    parser.set_defaults(budget=0.5)
    options = timing.parsed(parser)
    shapes = SHAPES if options.quick else [*SHAPES, *MORE_SHAPES]
    layouts = ["nchw"] if options.quick else list(FORMATS)
    orders = ["unsorted"] if options.quick else ["sorted", "unsorted"]
    cases = [
        (section, shape, layout, order, source)
        for section in LEAST
        for shape in shapes
        for layout in layouts
        for order in orders
        for source in (SOURCES if section in ("gather", "scatter") else ["cache"])
    ]
    rows = [case(*one, options) for one in timing.progress(cases)]
    columns = {"section": "s", "shape": "s", "layout": "s", "order": "s", "source": "s", "maskfuse us": ".1f"}
    columns |= {name: ".2f" for name in ("vs clone", "vs x[:, c]", "vs x[b][:, c]", "vs torch.gather")}
    columns |= {"GB/s": ".1f", "spread": ".0%"}
    timing.table(f"channels, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    checked = [
        (
            ", ".join([row["section"], row["shape"], row["order"], f"from {row['source']}", AGAINST[row["section"]]]),
            row[AGAINST[row["section"]]],
            LEAST[row["section"]],
        )
        for row in rows
        if row["targeted"]
    ]
    lines = timing.verdicts(checked)
    path = timing.write("channel_gather", rows, options.output, dtype="float32", targets=lines)
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
