"""Tables of bench/RESULTS.md: linear layers, convolutions, the engines beside them, and channels, on a processor."""

from __future__ import annotations

from records import met, table, wrapped

BATCHES = (1, 8, 37, 64, 197, 512)
SHOWN = ((4096, 1024), (1024, 1024), (4096, 4096), (1000, 2000))  # of the grid; the JSON has all of it
ENGINES = {"DeepSparse": "DeepSparse 1.8", "SparseProp": "SparseProp 0.1.14"}


def linear(result: dict, source: str) -> list[str]:
    rows = {(r["section"], r["out"], r["in"], round(r["density"], 2), r["mask"], r["batch"]): r for r in result["rows"]}
    shapes = dict.fromkeys(
        (r["out"], r["in"], round(r["density"], 2))
        for r in result["rows"]
        if r["mask"] == "random" and (r["out"], r["in"]) in SHOWN
    )
    batches = [b for b in BATCHES if any(r["batch"] == b for r in result["rows"])]

    def cell(*key: object) -> str:
        r = rows.get(key)
        return f"{r['vs dense']:.2f} / {r['vs w*m']:.2f}" if r else ""

    def sparse(*key: object) -> str:
        r = rows.get(key, {})
        against = r.get("vs torch CSR") or r.get("vs MKL CSR")
        return f"{against:.2f}" if against else ""

    grid = [
        [
            f"{o}x{i}",
            f"{1 - d:.0%}",
            *[cell("grid", o, i, d, "random", b) for b in batches],
            sparse("grid", o, i, d, "random", 512),
            cell("step", o, i, d, "random", 512),
            cell("packed", o, i, d, "random", 1),
            cell("packed", o, i, d, "random", 512),
        ]
        for o, i, d in shapes
    ]
    head = ["out x in", "masked", *[f"batch {b}" for b in batches], "512, against CSR"]
    head += ["fwd + bwd, 512", "packed, batch 1", "packed, 512"]
    structure = [
        [f"{r['out']}x{r['in']}", r["mask"]]
        + [cell(s, r["out"], r["in"], round(r["density"], 2), r["mask"], 512) for s in ("structure", "step")]
        for r in result["rows"]
        if r["section"] == "structure"
    ]
    return [
        *wrapped(
            f"{source}. How many times faster than plain `F.linear(x, w)` / than `F.linear(x, w * m)`, and than "
            "torch's sparse product of a CSR weight: medians of alternating rounds, random masks; a shared machine, so "
            "a tenth either way is noise:"
        ),
        "",
        *table(head, grid),
        "",
        *table(["out x in", "mask, batch 512", "forward", "fwd + bwd"], structure),
        "",
        *wrapped(f"{met(result)} targets that the benchmark checks are met; the JSON lists them all."),
    ]


def image(r: dict) -> str:
    return f"{r['channels']}, {r['size']}x{r['size']}, {r['kernel']}x{r['kernel']}"


def engines(result: dict, source: str) -> list[str]:
    convolution = "kernel" in result["rows"][0]
    there = [name for name in ENGINES if f"vs {name}" in result["rows"][0]]
    rows = [
        ([image(r)] if convolution else [f"{r['out']}x{r['in']}", str(r["batch"])])
        + [f"{1 - r['density']:.0%}"]
        + [f"{r[f'vs {name}']:.2f} / {r[f'unpacked vs {name}']:.2f}" for name in ("dense", *there)]
        for r in result["rows"]
    ]
    what = ["channels, image, kernel"] if convolution else ["out x in", "batch"]
    return [
        *wrapped(
            f"Against sparse engines, forward: {source}. How many times faster a packed layer / the same layer "
            "unpacked is than"
        ),
        "",
        *table([*what, "masked", "dense", *[ENGINES[name] for name in there]], rows),
    ]


def convolutions(result: dict, source: str) -> list[str]:
    rows: dict[tuple, dict[str, str]] = {}
    for r in result["rows"]:
        name = r["mask"] if r["mask"] != "random" else f"{1 - r['density']:.0%}"
        if r["section"] == "gated":
            name = f"nothing; {name}: half of the channels"
        cell = f"{r['vs dense']:.2f} / {r['first vs dense']:.2f} / {r['vs w*m']:.2f}"
        section = "forward" if r["section"] == "gated" else r["section"]
        rows.setdefault((image(r), name), {})[f"{section}, {r['format']}"] = cell
    columns = [f"{s}, {f}" for s in ("forward", "step", "packed") for f in ("NCHW", "channels_last")]
    return [
        *wrapped(
            f"Convolutions, batch {result['rows'][0]['batch']}: {source}. How many times faster than the better of "
            "torch's dense convolution in NCHW and channels_last, in repeated calls / in a first call, whose caches "
            "hold what another contender left / than `F.conv2d(x, w * m)` in the same format (step: forward and "
            f"backward); {met(result)} targets are met:"
        ),
        "",
        *table(
            ["channels, image, kernel", "masked", *columns],
            [[*key, *[cells.get(c, "") for c in columns]] for key, cells in rows.items()],
        ),
    ]


def channels(result: dict, source: str) -> list[str]:
    rows: dict[tuple, dict[str, str]] = {}
    for r in result["rows"]:
        against = next(key for key in ("vs clone", "vs x[b][:, c]", "vs torch.gather", "vs x[:, c]") if r.get(key))
        index = f", {r['vs x[:, c]']:.2f}" if r["section"] == "gather" else ""
        key = (r["section"], r["shape"], f"{r['layout']}, {r['order']}", against.removeprefix("vs "))
        rows.setdefault(key, {})[r["source"]] = f"{r[against]:.2f}{index} ({r['GB/s']:.0f} GB/s)"
    return [
        *wrapped(
            f"Channels, half of them active: {source}. How many times as fast as what stands beside it, for gathers "
            "also as `x[:, c]`, with what is read lying in the caches or in memory; GB/s count what is read and "
            f"written. {met(result)} targets are met:"
        ),
        "",
        *table(
            ["op", "input", "layout, index", "against", "cache", "memory"],
            [[*key, cells.get("cache", ""), cells.get("memory", "")] for key, cells in rows.items()],
        ),
    ]
