"""The text of bench/RESULTS.md: every table, under the machine that it was measured on."""

from __future__ import annotations

from collections.abc import Callable

import tables
import tables_models
from records import machine_of, machines, on_gpu, source, wrapped

Section = Callable[[dict, str], list[str]]

# Stem of a JSON file -> its table, in the order of the page.
SECTIONS: dict[str, Section] = {
    "masked_linear": tables.linear,
    "masked_linear_bfloat16": tables.linear,
    "masked_linear_float16": tables.linear,
    "peers_masked_linear": tables.engines,
    "masked_conv2d": tables.convolutions,
    "peers_masked_conv2d": tables.engines,
    "channel_gather": tables.channels,
    "gated_linear": tables_models.ops,
    "compact": tables_models.ops,
    "mask_gradient": tables_models.ops,
    "models": tables_models.networks,
    "transformers_models": tables_models.transformers,
    "memory": tables_models.memory,
    "allreduce": tables_models.allreduce,
    "microbench": tables_models.raw,
}
TITLES = {
    "masked_linear": "Linear layers",
    "masked_conv2d": "Convolutions",
    "channel_gather": "Channels",
    "models": "Whole models",
    "memory": "Memory",
    "allreduce": "Several processes",
    "microbench": "Raw kernels",
    "gated_linear": "Other ops",
}
# What a reader has to know of a record that stays beside a newer one.
NOTES = {
    "h100_own_kernels": "Of an earlier version, in which torch's library ran no large product or convolution: kept for "
    "what the kernels of this package reach by themselves."
}


def _yardsticks(results: dict[str, dict]) -> list[str]:
    """What the roofs of the picture are, where they were measured by themselves."""
    if "yardsticks" not in results:
        return []
    peaks = results["yardsticks"]["peaks"]
    named = [(*name.rsplit(", ", 1), value) for name, value in peaks.items()]
    listed = ", ".join(f"{what}: {value:.4g} {unit}" for what, unit, value in named)
    return ["", *wrapped(f"{source(results['yardsticks'])}. {listed[0].upper()}{listed[1:]}.")]


def page(results: dict[str, dict], plots: list[tuple[str, str, str]], others: list[str]) -> str:
    """Markdown of all results of a folder; `plots` are paths from the page on, what they show, and captions, `others`
    paths of other machines' pages."""
    labels = machines(results)
    lines = [
        "# Results",
        "",
        "<!-- `python bench/readme.py` writes this file from JSON files. -->",
        "",
        *wrapped(
            "Ratios above 1 mean that maskfuse is faster, below 1 that it is slower. Contenders take turns, in rounds; "
            "figures are medians. `make bench` measures all of it again, `python bench/run.py --only NAME` a part."
        ),
        "",
    ]
    for machine, label in labels.items():
        names = ", ".join(f"`{name}`" for name, result in results.items() if machine_of(result) == machine)
        first, *rest = wrapped(f"- {label} = {machine}: {names}")
        lines += [first, *[f"  {line}" for line in rest]]
    lines += ["", f"Other machines: {', '.join(f'[{path}]({path})' for path in others)}."] if others else []
    lines += _yardsticks(results)
    for path, what, caption in plots:
        lines += ["", f"![{what}]({path})", "", *wrapped(caption)]
    for name, section in SECTIONS.items():
        if name not in results:
            continue
        result = results[name]
        if name in TITLES:
            lines += ["", f"## {TITLES[name]}"]
        lines += ["", *section(result, source(result, f"machine {labels[machine_of(result)]}"))]
        absent = {peer: why for peer, why in result.get("peers", {}).items() if why}
        if absent:
            lines += ["", *wrapped(f"Not among them: {'; '.join(f'{peer} ({why})' for peer, why in absent.items())}.")]
    for name, result in sorted(results.items(), key=lambda item: not item[1].get("whole")):
        if on_gpu(result):
            title = "On a GPU" if result["whole"] else "On a GPU, rows alone"
            lines += ["", f"## {title}: `{name}`", ""]
            lines += [*wrapped(NOTES[name]), ""] if name in NOTES else []
            lines += tables_models.gpu(result, f"machine {labels[machine_of(result)]}")
    return "\n".join(lines) + "\n"
