"""Pictures of the results: each contender's speed as density falls, and a roofline (Williams et al. 2009).

An SVG says what it was drawn from, so that `readme.py --check` can tell an old one without drawing it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter
from records import machine_of

# Okabe and Ito's colours, which colour-blind readers tell apart, each with a marker of its own.
STYLES = {
    "maskfuse": ("#D55E00", "o", "-"),
    "maskfuse, packed": ("#E69F00", "s", "-"),
    "dense": ("#000000", "", ":"),
    "dense times mask": ("#0072B2", "v", "--"),
    "torch CSR": ("#009E73", "^", "--"),
    "DeepSparse": ("#CC79A7", "D", "--"),
    "SparseProp": ("#56B4E9", "P", "--"),
}
Points = list[tuple[float, float]]
Panel = tuple[str, dict[str, Points]]


def _lines(rows: list[dict], peers: dict[str, tuple[str, ...]]) -> dict[str, Points]:
    """For each contender (density, speed against dense), by the first of its keys that a row has; maskfuse has none."""
    lines: dict[str, Points] = {}
    for name, keys in peers.items():
        ratios = [
            (r, next((r[f"vs {key}"] for key in keys if r.get(f"vs {key}")), None if keys else 1.0)) for r in rows
        ]
        points = [(r["density"], r["vs dense"] / ratio) for r, ratio in ratios if ratio]
        if points:
            lines[name] = sorted(points)
    return lines


MULTIPLIED = {"maskfuse": (), "dense times mask": ("w*m",), "torch CSR": ("torch CSR", "MKL CSR")}
PACKED: dict[str, tuple[str, ...]] = {"maskfuse, packed": ()}
ENGINES = {name: (name,) for name in ("DeepSparse", "SparseProp")}


def _panel(results: dict[str, dict], op: str, first: str, shape: dict[str, object], at: dict[str, object]) -> dict:
    """Lines of the layers of one shape: of its section `first`, of packed ones, and of the engines' benchmark."""

    def rows(name: str, wanted: dict[str, object]) -> list[dict]:
        here = results.get(name, {"rows": []})["rows"]
        return [r for r in here if all(r[key] == value for key, value in (shape | wanted).items())]

    lines = _lines(rows(op, at | {"section": first, "mask": "random"}), MULTIPLIED)
    lines |= _lines(rows(op, at | {"section": "packed", "mask": "random"}), PACKED)
    return lines | _lines(rows(f"peers_{op}", {}), ENGINES)


def _linear(results: dict[str, dict], batch: int) -> Panel:
    shape = {"out": 4096, "in": 4096, "batch": batch}
    return f"linear 4096x4096, batch {batch}", _panel(results, "masked_linear", "grid", shape, {})


def _conv(results: dict[str, dict], channels: int, size: int, kernel: int) -> Panel:
    shape = {"channels": channels, "size": size, "kernel": kernel}
    title = f"convolution {kernel}x{kernel}, {channels} channels, {size}x{size}, batch 8"
    return title, _panel(results, "masked_conv2d", "forward", shape, {"format": "NCHW"})


def speed_up(results: dict[str, dict]) -> list[Panel]:
    """What the picture of speed against density shows: forward passes in float32."""
    panels = [_linear(results, 512), _linear(results, 1), _conv(results, 256, 14, 3), _conv(results, 512, 28, 1)]
    return [panel for panel in panels if panel[1]]


def draw_speed_up(panels: list[Panel], machine: str) -> pyplot.Figure:
    """A panel a layer, a line a contender."""
    down = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(down, 2, figsize=(10, 3.7 * down + 0.5), squeeze=False, layout="constrained")
    shown: dict[str, object] = {}
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        for name, points in lines.items():
            colour, marker, dash = STYLES[name]
            x, y = zip(*[(100 * density, speed) for density, speed in points], strict=True)
            (shown[name],) = axis.plot(x, y, color=colour, marker=marker, linestyle=dash, label=name, markersize=5)
        colour, _, dash = STYLES["dense"]
        shown["dense"] = axis.axhline(1, color=colour, linestyle=dash, label="dense")
        axis.set(title=title, xscale="log", yscale="log", xlim=(110, 4.5))
        axis.set_xticks([100, 70, 50, 20, 10, 5], ["100", "70", "50", "20", "10", "5"])
        ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if axis.get_ylim()[0] <= t <= axis.get_ylim()[1]]
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_xlabel("density (% of weights active)")
        axis.set_ylabel("times as fast as dense")
    order = [name for name in STYLES if name in shown]
    figure.legend([shown[name] for name in order], order, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Forward, float32, {machine}", fontsize=10)
    return figure


def roofs(results: dict[str, dict]) -> dict:
    """Measured peaks of the machine: `GFLOP/s` and `GB/s`, and what they are `measured by`.

    Of bench/yardsticks.py where that has run; else the largest dense product of bench_masked_linear.py, and the fastest
    copy from memory of bench_channel_gather.py.
    """
    if "yardsticks" in results:
        return {**results["yardsticks"]["roofs"], "measured by": "`bench/yardsticks.py`"}
    if not {"masked_linear", "channel_gather"} <= set(results):
        return {}
    forward = [r for r in results["masked_linear"]["rows"] if r["section"] == "grid"]
    flops = max(2 * r["batch"] * r["out"] * r["in"] / r["dense ms"] / 1e6 for r in forward)
    copies = [r for r in results["channel_gather"]["rows"] if r["source"] == "memory" and r.get("clone us")]
    bandwidth = max(r["GB/s"] * r["maskfuse us"] / r["clone us"] for r in copies)
    by = "the largest dense product of `bench_masked_linear.py`, the fastest copy of `bench_channel_gather.py`"
    return {"GFLOP/s": flops, "GB/s": bandwidth, "measured by": by}


# density -> colour and marker; masks without structure
DENSITIES = {1.0: ("#000000", "o"), 0.5: ("#0072B2", "s"), 0.2: ("#009E73", "^"), 0.1: ("#E69F00", "D")}
DENSITIES[0.05] = ("#D55E00", "v")


def roofline(results: dict[str, dict]) -> dict:
    """Roofs, and (FLOP a byte, GFLOP/s) of useful work of masked layers, by op and density.

    Useful are products with active weights. Bytes are those that must move: input, output, and active weights.
    """
    points: dict[str, dict[float, Points]] = {"linear": {}, "linear, packed": {}, "convolution": {}}
    panels = {"grid": "linear", "packed": "linear, packed"}
    for r in results.get("masked_linear", {"rows": []})["rows"]:
        if r["section"] in panels:
            active = r["density"] * r["out"] * r["in"]
            moved = 4 * (active + r["batch"] * (r["out"] + r["in"]))
            place = (2 * r["batch"] * active / moved, r["GFLOP/s"])
            points[panels[r["section"]]].setdefault(round(r["density"], 2), []).append(place)
    for r in results.get("masked_conv2d", {"rows": []})["rows"]:
        if r["section"] == "forward" and r["mask"] == "random":
            pixels, c = r["batch"] * r["size"] ** 2, r["channels"]
            active = r["density"] * (c * r["kernel"]) ** 2
            place = (2 * pixels * active / (4 * (active + 2 * pixels * c)), r["GFLOP/s"])
            points["convolution"].setdefault(round(r["density"], 2), []).append(place)
    return {"roofs": roofs(results), "points": points}


def draw_roofline(data: dict, machine: str) -> pyplot.Figure:
    """Achieved GFLOP/s against arithmetic intensity, under what the machine allows."""
    peak, bandwidth = data["roofs"]["GFLOP/s"], data["roofs"]["GB/s"]
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 4), sharey=True, sharex=True, layout="constrained")
    for axis, (op, by_density) in zip(axes, data["points"].items(), strict=True):
        low, high = 0.2, 400.0
        ridge = peak / bandwidth
        axis.plot([low, ridge, high], [bandwidth * low, peak, peak], color="#555555", linewidth=1.5)
        for density, (colour, marker) in DENSITIES.items():
            if by_density.get(density):
                x, y = zip(*by_density[density], strict=True)
                axis.scatter(x, y, s=18, color=colour, marker=marker, alpha=0.8, label=f"{density:.0%} active")
        axis.set(title=f"forward, {op}", xscale="log", yscale="log", xlim=(low, high))
        axis.annotate(f"{peak:.0f} GFLOP/s", (high, peak), (-4, 4), textcoords="offset points", ha="right", fontsize=9)
        axis.annotate(f"{bandwidth:.0f} GB/s", (low, bandwidth * low), (14, 0), textcoords="offset points", fontsize=9)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(alpha=0.3)
    figure.supxlabel("useful FLOP per byte of input, output and active weights", fontsize=9.5)
    axes[0].set_ylabel("useful GFLOP/s")
    axes[0].legend(loc="lower right", frameon=False, handletextpad=0.1)
    figure.suptitle(f"Roofline, float32, {machine}", fontsize=10)
    return figure


PICTURES = {
    "speed_up.svg": ("speed against density, one line a contender", speed_up, draw_speed_up),
    "roofline.svg": ("achieved GFLOP/s against arithmetic intensity", roofline, draw_roofline),
}


def caption(data: object) -> str:
    """What a reader must know to read a picture."""
    if isinstance(data, dict):
        peaks = data["roofs"]
        return (
            f"Roofs: {peaks['GFLOP/s']:.0f} GFLOP/s and {peaks['GB/s']:.0f} GB/s, of {peaks['measured by']}. A point "
            "is a layer; useful are the products with active weights, and bytes those of input, output and active "
            "weights, each counted once."
        )
    return (
        "Each contender against torch's dense layer in the same run. DeepSparse and SparseProp hold their weights "
        "packed: `maskfuse, packed` is what to compare them with. Lines end where nothing was measured."
    )


def drawn_from(data: object) -> str:
    """What a picture's file says of its data."""
    return "data " + hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def pictures(results: dict[str, dict]) -> dict[str, tuple[str, object, Callable[[object, str], pyplot.Figure]]]:
    """Those that the results suffice for: file name -> what it shows, its data, and what draws them."""
    found = {name: (what, data(results), draw) for name, (what, data, draw) in PICTURES.items()}
    return {name: (what, data, draw) for name, (what, data, draw) in found.items() if _enough(data)}


def _enough(data: object) -> bool:
    return bool(data["roofs"] and any(data["points"].values()) if isinstance(data, dict) else data)


def current(path: Path, data: object) -> bool:
    """Whether a picture was drawn from these data."""
    return path.exists() and drawn_from(data) in path.read_text()


def write(path: Path, data: object, draw: Callable[[object, str], pyplot.Figure], results: dict[str, dict]) -> None:
    """Draws a picture and says of which machine it is, the same bytes for the same data."""
    drawn = [f"{first}{op}" for op in ("masked_linear", "masked_conv2d") for first in ("", "peers_")]
    machine = " and ".join(dict.fromkeys(machine_of(results[name]) for name in drawn if name in results))
    with matplotlib.rc_context({"svg.hashsalt": "maskfuse", "font.size": 9.5, "axes.titlesize": 10}):
        figure = draw(data, machine)
        figure.savefig(path, metadata={"Date": None, "Description": drawn_from(data)})
        pyplot.close(figure)
