"""channel_gather and channel_scatter on the CPU against a copy, and against the indexing that they replace.

    gather      half of the channels, against a clone that moves as many bytes
    scatter     the same channels back: reads them and writes all, against a clone that moves as many bytes
    batch       half of the channels of half of the samples, against x[b][:, c]
    backward    of the gather alone, against that of x[:, c], which is index_put_(accumulate=True)

A clone allocates its result, as these ops do; `vs copy_` compares with a copy into memory that is there. Ratios above
1 mean that maskfuse is faster; GB/s count what is read and what is written. `--check` exits with 1 where a target is
missed, and says which.
"""

from __future__ import annotations

from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import channel_gather, channel_scatter

SHAPES = [(8, 64, 56, 56), (8, 256, 14, 14), (32, 512, 7, 7), (8, 512, 28, 28)]
MORE_SHAPES = [(64, 512, 1, 1), (256, 2048, 1, 1), (32, 2048, 4, 4), (32, 256, 56, 56)]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
LEAST = {"gather": 0.85, "scatter": 0.85, "batch": 4.0, "backward": 3.0}
AGAINST = {"gather": "vs clone", "scatter": "vs clone", "batch": "vs x[b][:, c]", "backward": "vs x[:, c]"}


def candidates(
    section: str, x: torch.Tensor, c: torch.Tensor, b: torch.Tensor
) -> tuple[dict[str, Callable[[], object]], int]:
    """The calls to compare, and the bytes that ours reads and writes."""
    size = x.element_size()
    if section == "batch":
        calls = {"x[b][:, c]": lambda: x[b][:, c], "maskfuse": lambda: channel_gather(x, c, b)}
        return calls, 2 * size * x[b][:, c].numel()
    values = channel_gather(x, c)
    if section == "backward":
        leaf = x.detach().requires_grad_()
        ours, theirs, grad = channel_gather(leaf, c), leaf[:, c], torch.randn_like(values)
        calls = {
            "x[:, c]": lambda: torch.autograd.grad(theirs, leaf, grad, retain_graph=True),
            "maskfuse": lambda: torch.autograd.grad(ours, leaf, grad, retain_graph=True),
        }
        return calls, size * (values.numel() + x.numel())
    if section == "gather":
        moved, call = 2 * size * values.numel(), lambda: channel_gather(x, c)
    else:
        moved, call = size * (values.numel() + x.numel()), lambda: channel_scatter(values, c, x.shape[1])
    source = torch.randn(moved // (2 * size))
    target = torch.empty_like(source)
    calls = {"clone": source.clone, "copy_": lambda: target.copy_(source), "maskfuse": call}
    if section == "gather":
        calls["x[:, c]"] = lambda: x[:, c]
    return calls, moved


def case(section: str, shape: tuple[int, ...], layout: str, order: str, options) -> dict:
    """One line of the result: medians, ratios, and what was achieved."""
    samples, channels = shape[:2]
    x = torch.randn(shape).to(memory_format=FORMATS[layout])
    c, b = torch.randperm(channels)[: channels // 2], torch.randperm(samples)[: samples // 2]
    if order == "sorted":
        c, b = c.sort().values, b.sort().values
    calls, moved = candidates(section, x, c, b)
    times = timing.compare(calls, options.budget)
    result = {"section": section, "shape": "x".join(map(str, shape)), "layout": layout, "order": order}
    result["targeted"] = shape in SHAPES and layout == "nchw"
    for name, timed in times.items():
        result[f"{name} us"] = timed.median * 1e6
        if name != "maskfuse":
            result[f"vs {name}"] = timing.ratio(timed, times["maskfuse"])
    result["GB/s"] = moved / times["maskfuse"].median / 1e9
    result["spread"] = times["maskfuse"].spread
    return result


def main() -> int:
    parser = timing.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="targeted shapes in NCHW, one order of the channels")
    parser.set_defaults(budget=0.5)
    options = parser.parse_args()
    timing.pin(options.threads)
    torch.manual_seed(0)
    shapes = SHAPES if options.quick else [*SHAPES, *MORE_SHAPES]
    layouts = ["nchw"] if options.quick else list(FORMATS)
    orders = ["unsorted"] if options.quick else ["sorted", "unsorted"]
    cases = [(s, shape, layout, o) for s in LEAST for shape in shapes for layout in layouts for o in orders]
    rows = [case(*one, options) for one in timing.progress(cases)]
    columns = {"section": "s", "shape": "s", "layout": "s", "order": "s", "maskfuse us": ".1f"}
    columns |= {name: ".2f" for name in ("vs clone", "vs copy_", "vs x[:, c]", "vs x[b][:, c]")}
    columns |= {"GB/s": ".1f", "spread": ".0%"}
    timing.table(f"channels, float32, {options.threads} threads (ratios: above 1 is faster)", rows, columns)
    lines = [
        {
            "what": f"{row['section']}, {row['shape']}, {row['order']}, {AGAINST[row['section']]}",
            "measured": row[AGAINST[row["section"]]],
            "bound": LEAST[row["section"]],
            "met": row[AGAINST[row["section"]]] >= LEAST[row["section"]],
        }
        for row in rows
        if row["targeted"]
    ]
    path = timing.write("channel_gather", rows, options.output, dtype="float32", targets=lines)
    for line in lines:
        verdict = "met   " if line["met"] else "MISSED"
        print(f"{verdict} {line['measured']:7.2f} >= {line['bound']:.2f}  {line['what']}")
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} targets met; written to {path}")
    return int(options.check and not all(line["met"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
