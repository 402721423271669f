"""Budgets: whole numbers that add up exactly."""

from __future__ import annotations

import math
import random

import pytest
from maskfuse.schedule.budget import apportion, proportions


@pytest.mark.parametrize(
    ("total", "weights", "limits", "want"),
    [
        (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),  # ties by index
        (11, [1, 1, 1], [9, 9, 9], [4, 4, 3]),
        (10, [3, 3, 4], [9, 9, 9], [3, 3, 4]),
        (10, [14, 33, 53], [99, 99, 99], [2, 3, 5]),  # 1.4, 3.3, 5.3: the largest remainder
        (10, [1, 1, 8], [9, 9, 4], [3, 3, 4]),  # who is full leaves the rest to the others
        (12, [1, 2, 9], [9, 3, 4], [5, 3, 4]),  # 12 * 2/12 = 2 would do, but not what the third one leaves
        (99, [1, 2, 3], [4, 5, 6], [4, 5, 6]),
        (15, [1, 2, 3], [4, 5, 6], [4, 5, 6]),
        (0, [1, 2], [4, 5], [0, 0]),
        (5, [0, 1], [0, 9], [0, 5]),  # a layer without weights
        (10**19 + 1, [1, 1], [10**19, 10**19], [5 * 10**18 + 1, 5 * 10**18]),  # beyond what a float tells apart
        (0, [], [], []),
    ],
)
def test_apportion(total, weights, limits, want):
    assert apportion(total, weights, limits) == want


def test_totals_are_exact_and_fall_layer_by_layer():
    """With what is left as the limit, rounding never gives a layer back what it lost (the Alabama paradox)."""
    draw = random.Random(0)
    paradoxes = 0
    for _ in range(300):
        weights = [draw.randint(1, 30) for _ in range(draw.randint(1, 6))]
        sizes = limits = [draw.randint(0, 60) for _ in weights]
        free = limits
        for total in range(sum(sizes), -1, -1):
            counts = apportion(total, weights, limits)
            assert sum(counts) == total
            assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
            limits = counts
            before, free = free, apportion(total, weights, sizes)
            paradoxes += any(new > old for new, old in zip(free, before, strict=True))
    assert paradoxes  # without the limits it happens


def test_erk_is_the_papers():
    """Densities in proportion to (out + in + height + width) / (out * in * height * width), or 1."""
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 1, 1), (1000, 256), (10, 5), (16, 8)]
    sizes = [math.prod(shape) for shape in shapes]
    total = round(0.2 * sum(sizes))
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense = set()
    while True:
        left = total - sum(sizes[i] for i in dense)
        epsilon = left / sum(raw[i] * sizes[i] for i in range(len(shapes)) if i not in dense)
        too_much = {i for i in range(len(shapes)) if i not in dense and epsilon * raw[i] > 1}
        if not too_much:
            break
        dense |= {max(too_much, key=lambda i: raw[i])}  # the paper's order: the densest first
    want = [sizes[i] if i in dense else epsilon * raw[i] * sizes[i] for i in range(len(shapes))]
    counts = apportion(total, proportions(shapes, "erk"), sizes)
    assert sum(counts) == total and dense == {0, 4, 5}
    assert all(counts[i] == sizes[i] for i in dense)
    assert all(abs(count - share) < 1 for count, share in zip(counts, want, strict=True))


def test_uniform_gives_each_the_same_density():
    shapes = [(20, 10), (7, 3, 3, 3), (100, 1)]
    assert proportions(shapes, "uniform") == [200, 189, 100]
    assert apportion(49, proportions(shapes, "uniform"), [200, 189, 100]) == [20, 19, 10]
