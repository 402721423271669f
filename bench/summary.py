"""The README's table of figures: what a reader wants first, and where it is slower. All of them are in RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from records import command_of, date_of, machine_of, machines, on_gpu, table, wrapped

Row = list[str]


def _span(values: Iterable[float]) -> str:
    """The smallest to the largest of some ratios, or nothing where there is none."""
    found = [f"{value:.2f}" for value in sorted(values)]
    return " to ".join(dict.fromkeys([found[0], found[-1]])) if found else ""


def _ratios(result: dict, key: str = "vs dense", **wanted: object) -> str:
    """The ratios of the rows that are as wanted; densities are compared to two places."""

    def fits(row: dict) -> bool:
        return all(
            round(row[name], 2) == value if name == "density" else row[name] == value for name, value in wanted.items()
        )

    return _span(row[key] for row in result["rows"] if row.get(key) is not None and fits(row))


def _linear(result: dict) -> list[Row]:
    here = {"mask": "random", "out": 4096, "in": 4096}
    rows = [
        [
            f"`masked_linear` 4096x4096, {masked} masked, batch {batch}",
            "`F.linear`",
            _ratios(result, section="grid", batch=batch, density=density, **here),
            _ratios(result, section="step", batch=batch, density=density, **here),
            _ratios(result, section="packed", batch=batch, density=density, **here),
        ]
        for masked, density, batch in (("90 %", 0.1, 512), ("50 %", 0.5, 512), ("90 %", 0.1, 1))
    ]
    for name, peer, key in (
        ("all of its shapes and batches, nothing to 95 % masked", "`F.linear`", "vs dense"),
        ("the same shapes, batches and masks", "`F.linear(x, w * m)`", "vs w*m"),
    ):
        rows.append([name, peer, *[_ratios(result, key, section=s) for s in ("grid", "step", "packed")]])
    half = {"mask": "half of inputs and outputs"}
    ratios = [_ratios(result, section=section, **half) for section in ("structure", "step")]
    rows.append(["half of inputs and outputs masked, batch 512", "`F.linear`", *ratios, ""])
    return rows


def _half_type(result: dict) -> list[Row]:
    name = f"{result['dtype']}, 4096x1024, 50 to 95 % masked, batch 512"
    rows = [r for r in result["rows"] if r["mask"] == "random" and r["batch"] == 512 and r["density"] < 0.51]
    spans = [_span(r["vs dense"] for r in rows if r["section"] == section) for section in ("grid", "step", "packed")]
    return [[name, "`F.linear`", *spans]]


def _conv(result: dict) -> list[Row]:
    found = []
    for name, density in (("90 %", 0.1), ("50 %", 0.5)):
        spans = [_ratios(result, section=s, mask="random", density=density) for s in ("forward", "step", "packed")]
        found.append([f"`masked_conv2d`, {name} masked, batch 8", "the better of torch's", *spans])
    return found


def _engines(what: str) -> Callable[[dict], list[Row]]:
    def rows(result: dict) -> list[Row]:
        names = [name for name in ("DeepSparse", "SparseProp") if f"vs {name}" in result["rows"][0]]
        spans = [_span(r[f"vs {name}"] for r in result["rows"]) for name in names]
        return [[f"{what}, 80 to 95 % masked", " / ".join(names), "", "", " / ".join(spans)]]

    return rows


def _networks(result: dict) -> list[Row]:
    return [
        [f"ResNet-18 on digits, {mask} masked", "dense", *[_ratios(result, section=s, mask=mask) for s in two], ""]
        for two in [("forward", "step")]
        for mask in ("90 % of weights", "half of channels")
    ]


def _transformers(result: dict) -> list[Row]:
    def of(model: str, section: str, what: str) -> str:
        rows = [r for r in result["rows"] if (r["model"], r["section"], r["is"]) == (model, section, what)]
        return f"{max(r['vs dense'] for r in rows):.2f}" if rows else ""

    passes = (("forward", "converted"), ("step", "converted"), ("forward", "packed"))
    names = {"encoder": "4 layers of BERT", "ResNet-18": "ResNet-18, 224 x 224"}
    return [
        [f"{name}, 90 % masked, batch 1", "dense", *[of(model, *one) for one in passes]]
        for model, name in names.items()
    ]


def _gpu(result: dict) -> list[Row]:
    wanted = {
        "masked forward, 4096x4096, 8192 tokens, 90 %": 2,
        "block mask 128x64, 4096x4096, 8192 tokens, 90 %": 2,
        "channel mask, half x half, 4096x4096, 8192 tokens, gather included": 2,
        "packed decode, 8192x8192, batch 1, 90 %": 4,
    }
    gpu = " ".join(result["device"]["name"].split()[:2])
    found = []
    for row in result["rows"]:
        if row["name"] in wanted and row["status"] == "measured":
            against = next(iter(row["ratios"]))
            found.append([f"{gpu}, bfloat16: {row['name']}", f"`{against}`", "", "", ""])
            found[-1][wanted[row["name"]]] = f"{row['ratios'][against]:.2f}"
    return found


PARTS: dict[str, Callable[[dict], list[Row]]] = {
    "masked_linear": _linear,
    "masked_linear_bfloat16": _half_type,
    "peers_masked_linear": _engines("packed linear layers, batch 1 and 512"),
    "masked_conv2d": _conv,
    "peers_masked_conv2d": _engines("packed convolutions"),
    "models": _networks,
    "transformers_models": _transformers,
}


def summary(results: dict[str, dict]) -> list[str]:
    """At most 25 lines of Markdown: rows, and behind them which command measured which, when and where."""
    parts = [(results[name], part) for name, part in PARTS.items() if name in results]
    parts += [(result, _gpu) for name, result in results.items() if on_gpu(result) and result["whole"]]
    labels = machines({str(i): result for i, (result, _) in enumerate(parts)})
    several = len({machine_of(r) for r, _ in parts if not on_gpu(r)}) > 1
    rows = []
    for result, part in parts:
        measured = f"`{command_of(result)}`, {date_of(result)}"
        measured += f", on {labels[machine_of(result)]}" if several else ""
        rows += [[*row, measured] for row in part(result)]
    where = "; ".join(f"{label} = {machine}" if several else machine for machine, label in labels.items())
    note = "**Processors differ: these figures are not of one machine.** " if several else ""
    return [
        *wrapped(
            f"{note}How many times faster (below 1: slower), smallest to largest where there are several, on {where}. "
            "Every figure, with its conditions: [bench/RESULTS.md](bench/RESULTS.md)."
        ),
        "",
        *table(["what", "than", "forward", "fwd + bwd", "packed", "measured by"], rows),
    ]
