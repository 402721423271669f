"""Tables of bench/RESULTS.md: whole models, memory, other ops and several processes on a processor; rows of a GPU."""

from __future__ import annotations

from records import command_of, date_of, met, table, wrapped


def networks(result: dict, source: str) -> list[str]:
    rows = [
        [r["mask"], r["section"], r["format"], f"{r['ms']:.0f}", f"{r['vs dense']:.2f}"]
        for r in result["rows"]
        if r["mask"] != "dense"
    ]
    return [
        *wrapped(
            f"ResNet-18 on 32 x 32 digits, batch {result['rows'][0]['batch']}: {source}. How many times faster than "
            "the dense network in the better format:"
        ),
        "",
        *table(["masked", "", "format", "ms", "against dense"], rows),
    ]


def transformers(result: dict, source: str) -> list[str]:
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
            f"tokens, and ResNet-18 on 224 x 224 without its stem: {source}. How many times faster than the dense "
            "model (in the better format), and the share of a model's time that its masked layers take when they are "
            f"called alone; were they free in the dense one, the ratios would be {bounds}:"
        ),
        "",
        *table(["model", "", "", "ms", "against dense", "masked layers"], rows),
    ]


def _masked(row: dict) -> str:
    return "" if row["storage"] == "dense" else f" ({row['masked']:.0%} masked)"


def memory(result: dict, source: str) -> list[str]:
    rows = [
        [r["layer"], f"{r['masked']:.0%}", r["storage"], f"{r['share']:.2f}", f"{r['with mask']:.2f}"]
        for r in result["rows"]
        if r["storage"] != "dense"
    ]
    peaks = ", ".join(
        f"{p['storage']}{_masked(p)} {p['peak MiB']:.0f} MiB" for p in result["peaks"] if p["peak MiB"] is not None
    )
    return [
        *wrapped(
            f"Memory of training with {result['optimizer']}: {source}. Weight, gradient and optimizer's state as a "
            "share of a dense layer's, without and with the mask's bits and plan"
            + (f"; peaks of a process that trains eight layers of 2048 x 2048: {peaks}:" if peaks else ":")
        ),
        "",
        *table(["layer", "masked", "storage", "share", "with mask"], rows),
    ]


def ops(result: dict, source: str) -> list[str]:
    """Of a benchmark whose rows are a case and, for each peer, `vs <peer>`."""
    peers = list(dict.fromkeys(key[3:] for r in result["rows"] for key in r if key.startswith("vs ")))
    rows = [
        [r["case"], r["section"], f"{r['maskfuse ms']:.3f}"]
        + [f"{r[f'vs {peer}']:.2f}" if r.get(f"vs {peer}") else "" for peer in peers]
        for r in result["rows"]
    ]
    return [
        *wrapped(f"`{result['benchmark']}`: {source}. How many times faster than what heads a column:"),
        "",
        *table(["case", "", "ms", *peers], rows),
    ]


def allreduce(result: dict, source: str) -> list[str]:
    rows = [
        [f"{1 - r['density']:.0%}", f"{r['MB dense']:.1f}", f"{r['MB sent']:.1f}"]
        + [f"{r[key]:.1f}" for key in ("DDP ms", "hook ms", "alone ms")]
        for r in result["rows"]
    ]
    return [
        *wrapped(
            f"Gradients averaged by {result['processes']} gloo processes on one machine, a thread each: {source}. "
            "A backward pass by DDP, with `sparse_allreduce_hook`, and without averaging:"
        ),
        "",
        *table(["masked", "MB, dense", "MB, sent", "DDP ms", "hook ms", "alone ms"], rows),
    ]


def raw(result: dict, source: str) -> list[str]:
    rows = [
        [r["kernel"], r["case"], r["isa"], f"{r['us']:.1f}"]
        + [f"{r[key]:.1f}" if r.get(key) is not None else "" for key in ("GFLOP/s", "GB/s", "op us", "overhead us")]
        for r in result["rows"]
    ]
    return [
        *wrapped(
            f"Raw kernels, in one thread: {source}. GFLOP/s count active weights, GB/s what must be read and written; "
            "the op is the same kernel through torch's dispatcher with results in torch's memory, and the overhead is "
            "what that adds to a call (where it is smaller than the noise it may be negative):"
        ),
        "",
        *table(["kernel", "case", "isa", "us", "GFLOP/s", "GB/s", "op us", "overhead us"], rows),
    ]


def gpu(result: dict, label: str) -> list[str]:
    rows = []
    for row in result["rows"]:
        if row["status"] != "measured":
            rows.append([row["name"], "", "", "", row["status"]])
            continue
        goals = {t["against"]: f"{t['least']}{'' if t['met'] else ', missed'}" for t in row["targets"]}
        for other in goals or [next(iter(row["ratios"]))]:
            rows.append([row["name"], f"{row['ms']['maskfuse']:.3f}", other, f"{row['ratios'][other]:.2f}"])
            rows[-1].append(goals.get(other, ""))
    known = [{"met": t["met"]} for row in result["rows"] for t in row["targets"] if t["met"] is not None]
    sticks = [(*name.rsplit(" ", 1), value) for name, value in result["yardsticks"].items()]
    reached = ", ".join(f"{what} {value:.3g} {unit}" for what, unit, value in sticks)
    return [
        *wrapped(
            f"`{command_of(result)}`, {date_of(result)}: {label}, torch {result['versions']['torch']}, commit "
            f"{result['commit']}, bfloat16 unless a row says otherwise; what is reached here: {reached}. "
            "How many times faster than what stands beside it, in alternating rounds of CUDA graphs; "
            f"{met({'targets': known})} targets are met:"
        ),
        "",
        *table(["case", "ms", "against", "ratio", "target"], rows),
    ]
