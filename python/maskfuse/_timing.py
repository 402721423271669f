"""Timing by alternation: candidates take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one entry a round. `spread` is the interquartile range over the median."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds a call."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / self.median


def _once(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def compare(
    candidates: Mapping[str, Callable[[], object]],
    budget: float = 1.0,
    min_rounds: int = 9,
    max_rounds: int = 201,
    shortest: float = 5e-4,
) -> dict[str, Timing]:
    """Times every candidate in the same rounds.

    Each candidate is called twice to warm up. A sample repeats the call until it lasts `shortest` seconds. A round
    takes one sample of each candidate, starting with the next one each time; there are `min_rounds` rounds, and
    more until `budget` seconds are spent.
    """
    calls = {}
    for name, function in candidates.items():
        _once(function, 1)
        calls[name] = max(1, round(shortest / max(_once(function, 1), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    start = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - start < budget):
        for name in order:
            samples[name].append(_once(candidates[name], calls[name]))
        order.append(order.pop(0))
        rounds += 1
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is: the median over rounds of the two times of one round."""
    return statistics.median(a / b for a, b in zip(slow.rounds, fast.rounds, strict=True))
