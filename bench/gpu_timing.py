"""Time on the device: samples of many calls, contenders in turn, operands that no cache holds.

A sample is a CUDA graph of calls, replayed between two events, so that the cost of launching does not count. The calls
of a sample go round several sets of operands, more bytes together than twice the L2 cache. Before a sample a large
buffer is read: it leaves nothing of another contender in the cache, and meanwhile the host gets ahead of the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from maskfuse._timing import Timing

SHORTEST = 0.5e-3  # seconds of a sample, in which the events' own time is small
WARM_UP = 0.03  # seconds of calls before the first sample: an idle device has a low clock
MOST_CALLS = 256

Call = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Calls that are timed together. `how` says in words how they are launched."""

    launch: Call
    calls: int
    how: str


@dataclass(frozen=True)
class Measured:
    timing: Timing
    how: str


class Clock(Protocol):
    """How a device is timed."""

    def sets(self, bytes_of_a_call: float) -> int:
        """Sets of operands that are more than the cache holds."""

    def sample(self, calls: list[Call]) -> Sample:
        """As many of the calls, in order and again from the start, as make a sample."""

    def seconds(self, sample: Sample) -> float:
        """Seconds that one call of a sample takes."""


def _all_of(calls: list[Call]) -> Call:
    def launch() -> None:
        for call in calls:  # one result at a time is alive
            call()

    return launch


class WallClock:
    """For dry runs."""

    def sets(self, bytes_of_a_call: float) -> int:
        return 2

    def sample(self, calls: list[Call]) -> Sample:
        return Sample(_all_of(calls), len(calls), f"{len(calls)} calls by the wall clock")

    def seconds(self, sample: Sample) -> float:
        start = time.perf_counter()
        sample.launch()
        return (time.perf_counter() - start) / sample.calls


class DeviceClock:
    def __init__(self) -> None:
        self.cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.ones(max(512 << 20, 4 * self.cache) // 4, device="cuda")
        self._sum = torch.empty((), device="cuda")
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sets(self, bytes_of_a_call: float) -> int:
        # One more than fills twice the cache: when a set's turn comes again, the others have passed through.
        return min(24, 1 + math.ceil(2 * self.cache / max(bytes_of_a_call, 1)))

    def sample(self, calls: list[Call]) -> Sample:
        launch = _all_of(calls)
        launch()
        alone = self.seconds(Sample(launch, len(calls), ""))
        turns = math.ceil(SHORTEST / (alone * len(calls)))
        calls = calls * max(1, min(turns, MOST_CALLS // len(calls)))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a first call on another stream sets up may not be captured
            calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                _all_of(calls)()
        except RuntimeError as error:
            torch.cuda.synchronize()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            how = f"{len(calls)} launches, their cost included: not captured ({reason})"
            return Sample(_all_of(calls), len(calls), how)
        graph.replay()
        torch.cuda.synchronize()
        return Sample(graph.replay, len(calls), f"a graph of {len(calls)} calls")

    def seconds(self, sample: Sample) -> float:
        torch.sum(self._flush, dim=0, out=self._sum)
        self._start.record()
        sample.launch()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / sample.calls


def clock_of(device: torch.device) -> Clock:
    return DeviceClock() if device.type == "cuda" else WallClock()


def compare(
    clock: Clock, contenders: dict[str, list[Call]], budget: float, min_rounds: int = 9, max_rounds: int = 101
) -> dict[str, Measured]:
    """Times contenders, each a list of calls on sets of operands, in alternating rounds of one sample each."""
    samples = {name: clock.sample(calls) for name, calls in contenders.items()}
    for sample in samples.values():
        end = time.perf_counter() + min(WARM_UP, budget / 4)
        while time.perf_counter() < end:
            clock.seconds(sample)
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples)
    end = time.perf_counter() + budget
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() > end:
            break
        for name in order:
            seconds[name].append(clock.seconds(samples[name]))
        order.append(order.pop(0))
    return {name: Measured(Timing(tuple(seconds[name])), samples[name].how) for name in samples}
