"""Runs a function in two gloo processes, which the tests of distributed training share."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch

PROCESSES = 2


def run(function, tmp_path, *arguments) -> None:
    """Calls `function(rank, *arguments)` in each process; an error in one, or two minutes, ends the test."""
    context = torch.multiprocessing.spawn(
        _process, (str(tmp_path / "rendezvous"), function, arguments), nprocs=PROCESSES, join=False
    )
    end = time.monotonic() + 120
    try:
        while not context.join(timeout=max(end - time.monotonic(), 0)):  # True when all have ended
            if time.monotonic() > end:
                raise TimeoutError(f"{function.__name__} did not end in two minutes")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _process(rank: int, path: str, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    function(rank, *arguments)
    torch.distributed.barrier()
    os._exit(0)  # destroy_process_group was seen to wait for ever for a thread of its own
