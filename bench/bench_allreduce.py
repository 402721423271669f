"""Gradients of a masked perceptron averaged by two gloo processes on this machine, a thread each: bytes and time, with
and without `sparse_allreduce_hook`, and without averaging. A backward pass of 64 rows each; medians of rounds in which
they take turns. The calls begin together, which the harness of one process cannot see to.

The processes talk through the loopback interface, which is faster than most networks: what is sent less counts for more
between machines.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_PROC_BIND"] = "false"  # else both processes are bound to one core

import timing
import torch
from maskfuse import Mask
from maskfuse.distributed import register_sparse_allreduce
from maskfuse.nn import MaskedLinear
from torch import nn
from torch.nn.parallel import DistributedDataParallel

DENSITIES, SIZE, ROWS = (1.0, 0.5, 0.2, 0.1, 0.05), 2048, 64
PROCESSES, WARM_UP, ROUNDS = 2, 3, 20


def wrapped(density: float, size: int) -> DistributedDataParallel:
    torch.manual_seed(0)
    model = nn.Sequential(MaskedLinear(size, size), nn.ReLU(), MaskedLinear(size, size), nn.ReLU(), nn.Linear(size, 10))
    for layer in (model[0], model[2]):
        layer.set_mask(Mask.random((size, size), density))
    return DistributedDataParallel(model)


def case(density: float, size: int, rounds: int) -> dict:
    """One line of the result, of the process that calls it."""
    plain, sparse = wrapped(density, size), wrapped(density, size)
    state = register_sparse_allreduce(sparse)
    x = torch.randn(ROWS, size)
    times: dict[str, list[float]] = {"DDP": [], "hook": [], "alone": []}
    for _ in range(WARM_UP + rounds):
        for name, model in (("DDP", plain), ("hook", sparse), ("alone", plain)):
            torch.distributed.barrier()
            start = time.perf_counter()
            if name == "alone":
                with model.no_sync():
                    model(x).sum().backward()
            else:
                model(x).sum().backward()
            times[name].append(time.perf_counter() - start)
    medians = {name: timing.Timing(tuple(values[WARM_UP:])).median * 1e3 for name, values in times.items()}
    steps = (WARM_UP + rounds) * 1e6
    sent = {"MB dense": state.bytes_dense / steps, "MB sent": state.bytes_sent / steps}
    return {"density": density, "size": size, **sent, **{f"{name} ms": value for name, value in medians.items()}}


def process(rank: int, folder: str, cases: list[tuple[float, int]], rounds: int) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES)
    rows = [case(*one, rounds) for one in cases]
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    torch.distributed.barrier()
    os._exit(0)  # destroy_process_group was seen to wait for ever for a thread of its own


def main() -> int:
    parser = timing.arguments(__doc__, "one density, small layers")
    parser.set_defaults(threads=1, rounds=ROUNDS)
    options = timing.parsed(parser)
    cases = [(DENSITIES[3], SIZE // 8)] if options.quick else [(density, SIZE) for density in DENSITIES]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (folder, cases, options.rounds), nprocs=PROCESSES)
        rows = json.loads(Path(folder, "rows.json").read_text())
    columns = {"density": ".0%", "MB dense": ".2f", "MB sent": ".2f"}
    columns |= {f"{name} ms": ".1f" for name in ("DDP", "hook", "alone")}
    timing.table(f"averaged gradients, {PROCESSES} processes", rows, columns)
    print(f"written to {timing.write('allreduce', rows, options.output, processes=PROCESSES)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
