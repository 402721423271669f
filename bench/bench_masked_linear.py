"""masked_linear on the CPU against torch and its peers: every target of a masked linear layer, in one run.

    grid        forward, shapes x batches x densities: plain F.linear, F.linear(x, w * m), torch's product by CSR weight
    step        forward and backward at batch 512, random masks and structured ones
    packed      forward of a packed layer at batch 1, 8 and 512
    structure   forward with channel masks (half of inputs and outputs), 2 of 4 and block masks (16 x 16)
    upkeep      planning a mask again, bytes of a plan, copying values, one thread against two, a 16 x 16 layer's call

Ratios above 1 mean that maskfuse is faster. `--check` exits with 1 where a target is missed, and says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import timing  # first: it pins the threads before torch starts them
import torch
from maskfuse import Mask, masked_linear
from maskfuse.nn import MaskedLinear
from torch import nn
from torch.nn import functional as F

TARGET_SHAPES = [(4096, 1024), (1024, 1024), (4096, 4096)]
SHAPES = [*TARGET_SHAPES, (1024, 4096), (768, 3072), (1000, 2000)]
BATCHES = [1, 8, 37, 64, 197, 512]
DENSITIES = [1.0, 0.7, 0.5, 0.2, 0.1, 0.05]
SPARSE = DENSITIES[2:]
DTYPES = ["float32", "float64", "bfloat16", "float16"]

# Against plain dense, at densities 0.5, 0.2, 0.1, 0.05.
FORWARD = dict(zip(SPARSE, (1.0, 2.4, 4.5, 8.0), strict=True))
STEP = dict(zip(SPARSE, (1.0, 2.0, 3.5, 6.0), strict=True))
PACKED = dict(zip(SPARSE, (1.7, 3.6, 5.0, 7.0), strict=True))  # x 0.7 where the dense weight fits the last cache


def row(section: str, label: dict, times: dict[str, timing.Timing], products: float, weight_bytes: float) -> dict:
    """One line of the result: medians, ratios, and what was achieved."""
    ours = times["maskfuse"].median
    result = {"section": section, "mask": "random", **label, **timing.measured(times)}
    result["GFLOP/s"] = products / ours / 1e9
    result["weight GB/s"] = weight_bytes / ours / 1e9
    return result


def layer_case(section: str, out: int, inp: int, batch: int, mask: Mask, name: str, options) -> dict:
    """Forward, or forward and backward, of one layer."""
    backward = section == "step"
    dtype = getattr(torch, options.dtype)
    x = torch.randn(batch, inp).to(dtype).requires_grad_(backward)
    w = torch.randn(out, inp).to(dtype).requires_grad_(backward)
    dense, grad = mask.dense().to(dtype), torch.randn(batch, out).to(dtype)
    packed = MaskedLinear(inp, out, bias=False, dtype=dtype, mask=mask).eval()
    if section == "packed":
        packed.pack()

    def run(forward: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(forward(), (x, w), grad)) if backward else forward

    ours = (lambda: packed(x)) if section == "packed" else (lambda: masked_linear(x, w, mask))
    calls = {"dense": run(lambda: F.linear(x, w)), "w*m": run(lambda: F.linear(x, w * dense)), "maskfuse": run(ours)}
    if section in ("grid", "packed") and batch in (1, 512) and mask.density <= 0.5 and dtype == torch.float32:
        csr, columns = (w * dense).to_sparse_csr(), x.T.contiguous()
        calls["torch CSR"] = lambda: csr @ columns
    with torch.set_grad_enabled(backward):
        times = timing.compare(calls, options.budget, min_rounds=7)
    label = {"out": out, "in": inp, "batch": batch, "density": mask.density, "mask": name}
    products = 2 * batch * mask.active * (3 if backward else 1)
    return row(section, label, times, products, w.element_size() * mask.active)


def random_masks(shape: tuple[int, int], densities: list[float]) -> dict[float, Mask]:
    return {density: Mask.random(shape, density) for density in densities}


def structured_masks(out: int, inp: int) -> dict[str, Mask]:
    return {
        "half of inputs and outputs": Mask.channels(
            (out, inp), torch.randperm(out)[: out // 2], torch.randperm(inp)[: inp // 2]
        ),
        "blocks 16x16, 50 %": Mask.blocks(Mask.random((out // 16, inp // 16), 0.5).dense(), (16, 16)),
        "2 of 4": Mask.n_m(torch.rand(out, inp), 2, 4),
        "blocks 16x16, 90 %": Mask.blocks(Mask.random((out // 16, inp // 16), 0.1).dense(), (16, 16)),
    }


def upkeep(options) -> dict[str, float]:
    """What is no ratio of two layers."""
    result: dict[str, float] = {}
    mask = Mask.random((4096, 4096), 0.1)
    for density in (0.5, 0.1):
        again = Mask.random((4096, 4096), density)
        timed = timing.compare({"plan": lambda bits=again.bits: Mask(bits, (4096, 4096)).plan}, options.budget)
        result[f"replan 4096x4096 at {density:.0%}, ms"] = timed["plan"].median * 1e3
        result[f"plan bytes an active weight at {density:.0%}"] = sum(t.numel() for t in again.plan) / again.active
    x, w = torch.randn(512, 4096), torch.randn(4096, 4096)
    one, none = x[:16], torch.randn(17, 4096)
    with torch.no_grad():
        masked_linear(one, w, mask)
        # A batch of one unit copies the same values and multiplies a 32nd of them.
        times = timing.compare({"512": lambda: masked_linear(x, w, mask), "17": lambda: masked_linear(none, w, mask)})
    share = 2 / 32  # of the batch of 512
    copy = (times["17"].median - share * times["512"].median) / (1 - share)
    result["copying values, share of a batch-512 forward at 90 %"] = copy / times["512"].median
    mask = Mask.random((4096, 1024), 0.1)
    x, w = torch.randn(512, 1024), torch.randn(4096, 1024)

    def on(threads: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(threads)
            masked_linear(x, w, mask)

        return run

    with torch.no_grad():
        times = timing.compare({"one": on(1), "two": on(2)})
    torch.set_num_threads(options.threads)
    result["two threads against one"] = timing.ratio(times["one"], times["two"])
    plain, masked = nn.Linear(16, 16), MaskedLinear(16, 16, mask=Mask.random((16, 16), 0.5))
    x, grad = torch.randn(4, 16), torch.randn(4, 16)
    with torch.no_grad():
        times = timing.compare({"plain": lambda: plain(x), "masked": lambda: masked(x)})
    result["call of a 16x16 layer, times nn.Linear's"] = timing.ratio(times["masked"], times["plain"])

    def step(layer: nn.Module) -> Callable[[], object]:
        parameters = list(layer.parameters())
        return lambda: torch.autograd.grad(layer(x), parameters, grad)

    times = timing.compare({"plain": step(plain), "masked": step(masked)})
    result["step of a 16x16 layer, times nn.Linear's"] = timing.ratio(times["masked"], times["plain"])
    return result


def absent_peers() -> dict[str, str]:
    """What torch offers for such weights and cannot be measured here."""
    try:
        torch.sparse.to_sparse_semi_structured(Mask.n_m(torch.rand(64, 64), 2, 4).dense().half())
    except (RuntimeError, NotImplementedError, ImportError, AttributeError) as error:
        return {"torch.sparse semi-structured": f"torch says: {' '.join(str(error).split())[:120]}"}
    return {"torch.sparse semi-structured": "available here, but not compared yet"}


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def targets(rows: list[dict], figures: dict[str, float], cached: bool) -> list[tuple[str, float, float]]:
    """(what, measured, at least); a negative bound means at most."""
    found: list[tuple[str, float, float]] = []

    def fits(value: object, wanted: object) -> bool:
        if callable(wanted):
            return wanted(value)
        return math.isclose(value, wanted, abs_tol=0.003) if isinstance(wanted, float) else value == wanted

    def worst(what: str, key: str, least: float, section: str, **wanted) -> None:
        values = [
            r[key] for r in rows if r["section"] == section and all(fits(r[k], value) for k, value in wanted.items())
        ]
        if values:
            found.append((what, min(values), least))

    for o, i in TARGET_SHAPES:
        for density in SPARSE:
            here = {"out": o, "in": i, "density": density, "mask": "random"}
            at = f"{o}x{i}, {1 - density:.0%} masked, against dense"
            worst(f"forward, batch 512, {at}", "vs dense", FORWARD[density], "grid", batch=512, **here)
            worst(f"forward and backward, batch 512, {at}", "vs dense", STEP[density], "step", batch=512, **here)
            least = PACKED[density] * (0.7 if cached else 1)
            worst(f"packed, batch 1, {at}", "vs dense", least, "packed", batch=1, **here)
    grid = [r for r in rows if r["section"] == "grid"]
    if grid:
        worst("grid, against w*m, slowest", "vs w*m", 1.0, "grid")
        worst(
            "grid, 50 % and more active, against dense, slowest at batch >= 37",
            "vs dense",
            0.95,
            "grid",
            density=lambda d: d >= 0.499,
            batch=lambda b: b >= 37,
        )
        found.append(("grid, against w*m, geometric mean", mean([r["vs w*m"] for r in grid]), 3.0))
        large = [r["vs w*m"] for r in grid if r["batch"] >= 37]
        found.append(("grid, against w*m, geometric mean at batch >= 37", mean(large), 2.2))
    for name, least in (("half of inputs and outputs", 3.4), ("blocks 16x16, 50 %", 1.8), ("blocks 16x16, 90 %", 7.5)):
        worst(f"{name}, against dense, slowest", "vs dense", least, "structure", mask=name)
    bounds = {"replan": -30, "plan bytes": -4, "copying": -0.35, "two threads": 1.8, "call of": -1.3, "step of": -2}
    for name, value in figures.items():
        found.append((name, value, next(bound for start, bound in bounds.items() if name.startswith(start))))
    return found


def main() -> int:
    parser = timing.arguments(__doc__, "one shape, batches 1 and 512")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the operands (float32)")
    parser.set_defaults(budget=0.25)
    options = timing.parsed(parser)
    shapes, targeted = (SHAPES[:1], SHAPES[:1]) if options.quick else (SHAPES, TARGET_SHAPES)
    batches = BATCHES[:: len(BATCHES) - 1] if options.quick else BATCHES
    cases = []
    for shape in shapes:
        for density, mask in random_masks(shape, DENSITIES).items():
            cases += [("grid", *shape, batch, mask, "random") for batch in batches]
            if shape in targeted and density in SPARSE:
                cases += [("step", *shape, 512, mask, "random")]
                cases += [("packed", *shape, batch, mask, "random") for batch in (1, 8, 512)]
        if shape in targeted:
            for name, mask in structured_masks(*shape).items():
                cases += [(section, *shape, 512, mask, name) for section in ("structure", "step")]
    rows = [layer_case(*case, options) for case in timing.progress(cases)]
    figures = {} if options.quick or options.dtype != "float32" else upkeep(options)
    columns = {"section": "s", "out": "d", "in": "d", "batch": "d", "density": ".0%", "mask": "s", "dense ms": ".3f"}
    columns |= {"w*m ms": ".3f", "maskfuse ms": ".3f", "vs dense": ".2f", "vs w*m": ".2f", "vs torch CSR": ".2f"}
    columns |= {"spread": ".0%", "GFLOP/s": ".0f", "weight GB/s": ".1f"}
    rows = [{"vs torch CSR": None, **r} for r in rows]
    timing.table(
        f"masked_linear, {options.dtype}, {options.threads} threads (ratios: above 1 is faster)", rows, columns
    )
    cached = timing.last_cache() >= 4 * 4096 * 4096
    checked = targets(rows, figures, cached)
    name = "masked_linear" if options.dtype == "float32" else f"masked_linear_{options.dtype}"
    lines = timing.verdicts(checked)
    path = timing.write(
        name,
        rows,
        options.output,
        dtype=options.dtype,
        upkeep=figures,
        targets=lines,
        weights_fit_last_cache=cached,
        peers=absent_peers() if options.dtype == "float32" else {},
    )
    return timing.report(lines, path, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
