"""Writes the README's figures from bench/results/*.json: `python bench/readme.py`."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
START, END = "<!-- measured: bench/readme.py writes this -->", "<!-- /measured -->"
BATCHES = (1, 8, 37, 64, 197, 512)
SHOWN = ((4096, 1024), (1024, 1024), (4096, 4096), (1000, 2000))  # of the grid; the JSON has all of it


def machine(result: dict) -> str:
    info = result["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in info["caches"].items())
    return (
        f"`{result['command']}`, {info['date']}: {info['processor']} ({info['processors']} virtual processors, "
        f"{caches}), {info['threads']} threads, {info['cpu_level']}, torch {info['torch']}, float32"
    )


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def layers(result: dict) -> list[str]:
    rows = {(r["section"], r["out"], r["in"], round(r["density"], 2), r["mask"], r["batch"]): r for r in result["rows"]}
    shapes = list(
        dict.fromkeys(
            (r["out"], r["in"], round(r["density"], 2))
            for r in result["rows"]
            if r["mask"] == "random" and (r["out"], r["in"]) in SHOWN
        )
    )

    def cell(*key: object) -> str:
        r = rows.get(key)
        return f"{r['vs dense']:.2f} / {r['vs w*m']:.2f}" if r else ""

    grid = [
        [
            f"{o}x{i}",
            f"{1 - d:.0%}",
            *[cell("grid", o, i, d, "random", b) for b in BATCHES],
            cell("step", o, i, d, "random", 512),
            cell("packed", o, i, d, "random", 1),
            cell("packed", o, i, d, "random", 512),
        ]
        for o, i, d in shapes
    ]
    head = ["out x in", "masked", *[f"batch {b}" for b in BATCHES], "fwd + bwd, 512", "packed, batch 1", "packed, 512"]
    structure = [
        [
            f"{r['out']}x{r['in']}",
            r["mask"],
            *[
                cell(section, r["out"], r["in"], round(r["density"], 2), r["mask"], 512)
                for section in ("structure", "step")
            ],
        ]
        for r in result["rows"]
        if r["section"] == "structure"
    ]
    targets = result["targets"]
    missed = [t for t in targets if not t["met"]]
    return [
        *wrapped(
            f"{machine(result)}. How many times faster than plain `F.linear(x, w)` / than `F.linear(x, w * m)`: "
            "medians of alternating rounds, random masks; a shared machine, so a tenth either way is noise:"
        ),
        "",
        *table(head, grid),
        "",
        *table(["out x in", "mask, batch 512", "forward", "fwd + bwd"], structure),
        "",
        *wrapped(
            f"{len(targets) - len(missed)} of the {len(targets)} targets that the benchmark checks are met on this "
            "machine, where torch's own product reaches four fifths of the peak; the JSON lists them all."
        ),
    ]


def image(r: dict) -> str:
    return f"{r['channels']}, {r['size']}x{r['size']}, {r['kernel']}x{r['kernel']}"


def peers(result: dict) -> list[str]:
    convolution = "kernel" in result["rows"][0]
    rows = [
        ([image(r)] if convolution else [f"{r['out']}x{r['in']}", str(r["batch"])])
        + [f"{1 - r['density']:.0%}"]
        + [f"{r[f'vs {name}']:.2f} / {r[f'unpacked vs {name}']:.2f}" for name in ("dense", "DeepSparse", "SparseProp")]
        for r in result["rows"]
    ]
    what = ["channels, image, kernel"] if convolution else ["out x in", "batch"]
    return [
        *wrapped(
            f"Against sparse engines, forward: {machine(result)}. How many times "
            "faster a packed layer / the same layer unpacked is than"
        ),
        "",
        *table([*what, "masked", "dense", "DeepSparse 1.8", "SparseProp 0.1.14"], rows),
    ]


def convolutions(result: dict) -> list[str]:
    rows: dict[tuple, dict[str, str]] = {}
    for r in result["rows"]:
        name = r["mask"] if r["mask"] != "random" else f"{1 - r['density']:.0%}"
        if r["section"] == "gated":
            name = f"nothing; {name}: half of the channels"
        cell = f"{r['vs dense']:.2f} / {r['first vs dense']:.2f} / {r['vs w*m']:.2f}"
        section = "forward" if r["section"] == "gated" else r["section"]
        rows.setdefault((image(r), name), {})[f"{section}, {r['format']}"] = cell
    columns = [f"{s}, {f}" for s in ("forward", "step", "packed") for f in ("NCHW", "channels_last")]
    met = sum(t["met"] for t in result["targets"])
    return [
        *wrapped(
            f"Convolutions, batch 8: {machine(result)}. How many times faster than the better of torch's dense "
            "convolution in NCHW and channels_last, in repeated calls / in a first call, whose caches hold what "
            "another contender left / than `F.conv2d(x, w * m)` in the same format (step: forward and "
            f"backward); {met} of {len(result['targets'])} targets are met:"
        ),
        "",
        *table(
            ["channels, image, kernel", "masked", *columns],
            [[*key, *[cells.get(c, "") for c in columns]] for key, cells in rows.items()],
        ),
    ]


def networks(result: dict) -> list[str]:
    rows = [
        [r["mask"], r["section"], r["format"], f"{r['ms']:.0f}", f"{r['vs dense']:.2f}"]
        for r in result["rows"]
        if r["mask"] != "dense"
    ]
    return [
        *wrapped(
            f"ResNet-18 on 32 x 32 digits, batch {result['rows'][0]['batch']}: {machine(result)}. How many times "
            "faster than the dense network in the better format:"
        ),
        "",
        *table(["masked", "", "format", "ms", "against dense"], rows),
    ]


def transformers(result: dict) -> list[str]:
    rows = [
        [
            r["model"],
            r["section"] + (f", {r['format']}" if r["format"] else ""),
            r["is"],
            f"{r['ms']:.1f}",
            f"{r['vs dense']:.2f}",
            f"{r['share']:.0%}" if "share" in r else "",
        ]
        for r in result["rows"]
    ]
    bounds = " and ".join(f"{r['bound']:.1f} ({r['model']})" for r in result["rows"] if "bound" in r)
    return [
        *wrapped(
            f"Models of the transformers package ({result['transformers']}, random weights) after `convert`, 90 % of "
            f"the weights masked, batch 1: {result['layers']} layers of BERT at their base size, {result['tokens']} "
            f"tokens, and ResNet-18 on 224 x 224 without its stem: {machine(result)}. How many times faster than the "
            "dense model (in the better format), and the share of a model's time that its masked layers take when they "
            f"are called alone; were they free in the dense one, the ratios would be {bounds}:"
        ),
        "",
        *table(["model", "", "", "ms", "against dense", "masked layers"], rows),
    ]


def gpu(result: dict) -> list[str]:
    rows = []
    for row in result["rows"]:
        if row["status"] != "measured":
            rows.append([row["name"], "", "", "", row["status"]])
            continue
        goals = {
            target["against"]: f"{target['least']}{'' if target['met'] else ', missed'}" for target in row["targets"]
        }
        for other in goals or [next(iter(row["ratios"]))]:
            ours, ratio = row["ms"]["maskfuse"], row["ratios"][other]
            rows.append([row["name"], f"{ours:.3f}", other, f"{ratio:.2f}", goals.get(other, "")])
    known = [target for row in result["rows"] for target in row["targets"] if target["met"] is not None]
    stick = result["yardsticks"]
    return [
        *wrapped(
            f"`{result['command'].split(' --commit')[0]}`, {result['date']}: {result['device']['name']}, torch "
            f"{result['versions']['torch']}, bfloat16 unless a row says otherwise; here a copy moves "
            f"{stick['copy TB/s']:.1f} TB/s, a large product reaches {stick['bfloat16 8192^3 TFLOP/s']:.0f} TFLOP/s. "
            "How many times faster than what stands beside it, in alternating rounds of CUDA graphs; "
            f"{sum(target['met'] for target in known)} of {len(known)} targets are met:"
        ),
        "",
        *table(["case", "ms", "against", "ratio", "target"], rows),
    ]


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no {START} ... {END}")
    lines = layers(json.loads((RESULTS / "masked_linear.json").read_text()))
    lines += ["", *peers(json.loads((RESULTS / "peers_masked_linear.json").read_text()))]
    lines += ["", *convolutions(json.loads((RESULTS / "masked_conv2d.json").read_text()))]
    lines += ["", *peers(json.loads((RESULTS / "peers_masked_conv2d.json").read_text()))]
    lines += ["", *networks(json.loads((RESULTS / "models.json").read_text()))]
    lines += ["", *transformers(json.loads((RESULTS / "transformers_models.json").read_text()))]
    for path in sorted(RESULTS.glob("nvidia-*.json")):
        lines += ["", *gpu(json.loads(path.read_text()))]
    content = "\n".join([START, *lines, END])
    readme.write_text(pattern.sub(lambda match: content, text))


if __name__ == "__main__":
    main()
