"""The tables that pages show of bench/results/*.json. Each takes a file's content and gives lines of Markdown.

A cell like "2.9 to 5.0" is the smallest and the largest ratio over all shapes measured.
"""

from __future__ import annotations

from collections.abc import Callable

from records import table

Rows = list[dict]
Table = Callable[[dict], list[str]]


def of(file: str) -> Callable[[Table], Table]:
    """Says which file a table is of."""

    def named(table: Table) -> Table:
        table.file = file  # type: ignore[attr-defined]
        return table

    return named


def spread(rows: Rows, key: str = "vs dense") -> str:
    """The smallest and the largest of a figure."""
    values = [row[key] for row in rows]
    if not values:
        return ""
    least, most = f"{min(values):.2f}", f"{max(values):.2f}"
    return least if least == most else f"{least} to {most}"


def masked(row: dict) -> str:
    """The masked share, rounded."""
    return f"{1 - row['density']:.0%}"


def distinct(rows: Rows, key: Callable[[dict], object]) -> list:
    """Values of a key in the order of rows."""
    return list(dict.fromkeys(key(row) for row in rows))


def pick(rows: Rows, **wanted: object) -> Rows:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _linear(result: dict, section: str) -> list[str]:
    rows = pick(result["rows"], section=section, mask="random")
    batches = sorted(distinct(rows, lambda row: row["batch"]))
    lines = [
        [share, *[spread([row for row in pick(rows, batch=batch) if masked(row) == share]) for batch in batches]]
        for share in sorted(distinct(rows, masked), key=lambda share: float(share[:-1]))
    ]
    return table(["masked", *[f"batch {batch}" for batch in batches]], lines)


@of("masked_linear")
def linear_forward(result: dict) -> list[str]:
    """Forward passes of unstructured masks."""
    return _linear(result, "grid")


@of("masked_linear")
def linear_step(result: dict) -> list[str]:
    """Forward and backward."""
    return _linear(result, "step")


@of("masked_linear")
def linear_packed(result: dict) -> list[str]:
    """Packed layers."""
    return _linear(result, "packed")


@of("masked_linear_bfloat16")
def linear_bfloat16(result: dict) -> list[str]:
    """Forward passes in bfloat16."""
    return _linear(result, "grid")


@of("masked_linear_bfloat16")
def linear_bfloat16_packed(result: dict) -> list[str]:
    """Packed layers in bfloat16."""
    return _linear(result, "packed")


@of("masked_linear_bfloat16")
def linear_bfloat16_structures(result: dict) -> list[str]:
    """What structure brings in bfloat16."""
    return _structures(result)


@of("masked_linear")
def linear_break_even(result: dict) -> list[str]:
    """From which masked share on every shape is at least as fast as dense."""
    lines = []
    for name, section in (("forward", "grid"), ("forward and backward", "step"), ("packed, forward", "packed")):
        rows = pick(result["rows"], section=section, mask="random")
        for batch in sorted(distinct(rows, lambda row: row["batch"])):
            slow = [1 - row["density"] for row in pick(rows, batch=batch) if row["vs dense"] < 1]
            shares = sorted({round(1 - row["density"], 2) for row in pick(rows, batch=batch)})
            fast = [share for share in shares if share > max(slow, default=-1) + 0.01]
            lines.append([name, str(batch), f"{fast[0]:.0%}" if fast else "nowhere"])
    return table(["", "batch", "faster than dense from"], lines)


@of("masked_linear")
def linear_structures(result: dict) -> list[str]:
    """What structure brings, beside unstructured masks of about the same density."""
    return _structures(result)


def _structures(result: dict) -> list[str]:
    rows = [row for row in result["rows"] if row["batch"] == 512]
    names = distinct(pick(rows, section="structure"), lambda row: row["mask"])
    lines = [
        [name, *[spread(pick(rows, section=section, mask=name)) for section in ("structure", "step")]] for name in names
    ]
    for density in (0.5, 0.2, 0.1):
        near = [row for row in pick(rows, mask="random") if round(row["density"], 2) == density]
        lines.append([f"no structure, {1 - density:.0%}", *[spread(pick(near, section=s)) for s in ("grid", "step")]])
    return table(["masked", "forward", "forward and backward"], lines)


@of("masked_conv2d")
def convolutions(result: dict) -> list[str]:
    """Against the better of torch's two formats, over all images, kernels and formats measured."""
    rows = result["rows"]
    sections = ("forward", "step", "packed")
    random = pick(rows, mask="random")
    lines = [
        [share, *[spread([row for row in pick(random, section=s) if masked(row) == share]) for s in sections]]
        for share in sorted(distinct(random, masked), key=lambda share: float(share[:-1]))
    ]
    others = distinct([row for row in rows if row["mask"] != "random" and row["section"] != "gated"], _mask)
    lines += [[name, *[spread(pick(rows, section=s, mask=name)) for s in sections]] for name in others]
    gated = distinct(pick(rows, section="gated"), _mask)
    lines += [[f"`channels=`: {name}", spread(pick(rows, section="gated", mask=name)), "", ""] for name in gated]
    return table(["masked", "forward", "forward and backward", "packed"], lines)


def _mask(row: dict) -> str:
    return row["mask"]


@of("channel_gather")
def channels(result: dict) -> list[str]:
    """Copies of chosen channels against a clone of the same bytes, and against torch's indexing."""
    lines = []
    for section in distinct(result["rows"], lambda row: row["section"]):
        for layout in distinct(result["rows"], lambda row: row["layout"]):
            rows = pick(result["rows"], section=section, layout=layout)
            cells = [spread(rows, key) if key in rows[0] else "" for key in ("vs clone", "vs x[:, c]", "vs x[b][:, c]")]
            lines.append([section, layout, *cells])
    return table(["", "layout", "`x.clone()`", "`x[:, c]`", "`x[b][:, c]`"], lines)


@of("memory")
def memory(result: dict) -> list[str]:
    """Peaks of a process that trains."""
    lines = [[peak["storage"], f"{peak['masked']:.0%}", f"{peak['peak MiB']:.0f}"] for peak in result["peaks"]]
    return table(["layers", "masked", "peak, MiB"], lines)


@of("memory")
def memory_shares(result: dict) -> list[str]:
    """Bytes of parameter, gradient and optimizer state as a share of a dense layer's."""
    rows = pick(result["rows"], storage="compact")
    lines = [[r["layer"], f"{r['masked']:.0%}", f"{r['share']:.2f}", f"{r['with mask']:.2f}"] for r in rows]
    return table(["compact layer", "masked", "share of dense", "with bits and plan"], lines)


@of("models")
def resnet(result: dict) -> list[str]:
    """ResNet-18."""
    rows = [row for row in result["rows"] if row["mask"] != "dense"]
    lines = [[row["mask"], row["section"], row["format"], f"{row['vs dense']:.2f}"] for row in rows]
    return table(["masked", "", "format", "against dense"], lines)


@of("transformers_models")
def transformers(result: dict) -> list[str]:
    """Models of the transformers package."""
    rows = [row for row in result["rows"] if row["is"] != "dense"]
    lines = [[row["model"], row["section"], row["is"], row["format"], f"{row['vs dense']:.2f}"] for row in rows]
    return table(["model", "", "layers", "format", "against dense"], lines)


@of("peers_masked_linear")
def sparse_engines(result: dict) -> list[str]:
    """Against DeepSparse and SparseProp."""
    rows = result["rows"]
    lines = [
        [
            f"{batch}",
            masked(row),
            *[spread([r for r in pick(rows, batch=batch) if masked(r) == masked(row)], f"vs {n}") for n in ENGINES],
        ]
        for batch in sorted(distinct(rows, lambda row: row["batch"]))
        for row in pick(rows, batch=batch, out=rows[0]["out"], **{"in": rows[0]["in"]})
    ]
    return table(["batch", "masked", *ENGINES], lines)


ENGINES = ("DeepSparse", "SparseProp")


@of("nvidia-h100-80gb-hbm3")
def gpu(result: dict) -> list[str]:
    """Every case that was measured on a GPU."""
    measured = [row for row in result["rows"] if row["status"] == "measured"]
    lines = [
        [row["name"], f"{row['ms']['maskfuse']:.3f}", f"`{other}`", f"{ratio:.2f}"]
        for row in measured
        for other, ratio in row["ratios"].items()
    ]
    return table(["case", "ms", "against", "ratio"], lines)


@of("nvidia-h100-80gb-hbm3")
def gpu_checks(result: dict) -> list[str]:
    """Tests and compute-sanitizer on a GPU."""
    tests = result["tests"]
    counts = [f"{tests[key]} {key}" for key in ("passed", "failed", "skipped", "unended") if tests[key]]
    lines = [["tests", f"{tests['status']}: {', '.join(counts)}"]]
    for run in result["sanitizer"]["runs"]:
        found = [f"{run[key]} {key}" for key in ("cases", "errors") if key in run]
        lines.append([run["tool"], ": ".join(filter(None, [run["status"], ", ".join(found)]))])
    return table(["", f"at commit {result['commit']}"], lines)
