"""Gradients of a masked perceptron averaged by two gloo processes on this machine: bytes and time, with and without
`sparse_allreduce_hook`.

python bench/bench_allreduce.py        # a backward pass of 64 rows each; medians of alternating rounds

The processes talk through the loopback interface, which is faster than most networks: what is sent less counts for more
between machines.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch
from maskfuse import Mask
from maskfuse.distributed import register_sparse_allreduce
from maskfuse.nn import MaskedLinear
from torch import nn
from torch.nn.parallel import DistributedDataParallel

DENSITIES, SIZE = (1.0, 0.5, 0.2, 0.1, 0.05), 2048


def wrapped(density: float) -> DistributedDataParallel:
    torch.manual_seed(0)
    model = nn.Sequential(MaskedLinear(SIZE, SIZE), nn.ReLU(), MaskedLinear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 10))
    for layer in (model[0], model[2]):
        layer.set_mask(Mask.random((SIZE, SIZE), density))
    return DistributedDataParallel(model)


def process(rank: int, path: str, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    if rank == 0:
        print(
            f"{'density':>8} {'MB dense':>9} {'MB sent':>8} {'share':>7} {'DDP ms':>8} {'hook ms':>8} {'alone ms':>9}"
        )
    for density in DENSITIES:
        plain, sparse = wrapped(density), wrapped(density)
        state = register_sparse_allreduce(sparse)
        x = torch.randn(64, SIZE)
        times: dict[str, list[float]] = {"plain": [], "sparse": [], "alone": []}
        for _ in range(rounds + 3):
            for name, model in (("plain", plain), ("sparse", sparse), ("alone", plain)):
                torch.distributed.barrier()
                start = time.perf_counter()
                if name == "alone":
                    with model.no_sync():
                        model(x).sum().backward()
                else:
                    model(x).sum().backward()
                times[name].append(time.perf_counter() - start)
        if rank == 0:
            milliseconds = [statistics.median(values[3:]) * 1e3 for values in times.values()]
            steps = rounds + 3
            print(
                f"{density:>8.0%} {state.bytes_dense / steps / 1e6:>9.2f} {state.bytes_sent / steps / 1e6:>8.2f} "
                f"{state.bytes_sent / state.bytes_dense:>7.2%} {milliseconds[0]:>8.1f} {milliseconds[1]:>8.1f} "
                f"{milliseconds[2]:>9.1f}",
                flush=True,
            )
    torch.distributed.barrier()
    os._exit(0)  # destroy_process_group was seen to wait for ever for a thread of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="backward passes of each (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (os.path.join(folder, "rendezvous"), options.rounds), nprocs=2)


if __name__ == "__main__":
    main()
