"""Timing by alternation: candidates take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one entry a round. `spread` is the interquartile range over the median.

    `rounds` are of repeated calls, whose operands are in cache as far as they fit; `first` of the calls before them,
    which found there what another candidate left.
    """

    rounds: tuple[float, ...]
    first: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median seconds a call."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = quartiles(self.rounds)
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
    shortest: float = 1e-3,
) -> dict[str, Timing]:
    """Times every candidate in the same rounds.

    Each candidate is called twice to warm up. A sample is one call, timed by itself, then as many as last `shortest`
    seconds together. A round takes one sample of each candidate, starting with the next one each time; there are
    `min_rounds` rounds, and more until `budget` seconds are spent.
    """
    calls = {}
    for name, function in candidates.items():
        _once(function, 1)
        calls[name] = max(1, round(shortest / max(_once(function, 1), 1e-9)))
    first: dict[str, list[float]] = {name: [] for name in candidates}
    again: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    start = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - start < budget):
        for name in order:
            first[name].append(_once(candidates[name], 1))
            again[name].append(_once(candidates[name], calls[name]))
        order.append(order.pop(0))
        rounds += 1
    return {name: Timing(tuple(again[name]), tuple(first[name])) for name in candidates}


def ratios(slow: Timing, fast: Timing, first: bool = False) -> tuple[float, ...]:
    """How many times faster `fast` is in each round."""
    times = (slow.first, fast.first) if first else (slow.rounds, fast.rounds)
    return tuple(a / b for a, b in zip(*times, strict=True))


def ratio(slow: Timing, fast: Timing, first: bool = False) -> float:
    """How many times faster `fast` is: the median over rounds of the two times of one round."""
    return statistics.median(ratios(slow, fast, first))


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """The first and the third; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
