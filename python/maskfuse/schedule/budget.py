"""How many weights of each layer are active, where those of all layers together are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Budget = Literal["uniform", "erk", "global"]
BUDGETS = ("uniform", "erk", "global")


def apportion(total: int, weights: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights`, none above its limit.

    Who would get more than its limit gets that, and the others share what is left. Fractions are rounded by largest
    remainder, ties by index. It is integer arithmetic, so nothing depends on a float's rounding.

    Args:
        total: what is shared out; more than all limits together is as much as these.
        weights: not negative, positive where the limit is.
        limits: not negative.
    """
    counts = [0] * len(limits)
    left = min(total, sum(limits))
    waiting = [i for i, limit in enumerate(limits) if limit]
    while waiting:
        sum_of_weights = sum(weights[i] for i in waiting)
        full = [i for i in waiting if left * weights[i] >= limits[i] * sum_of_weights]
        if not full:
            shares = {i: divmod(left * weights[i], sum_of_weights) for i in waiting}
            for i, (share, _) in shares.items():
                counts[i] = share
            rest = left - sum(share for share, _ in shares.values())
            for i in sorted(waiting, key=lambda i: (-shares[i][1], i))[:rest]:
                counts[i] += 1
            break
        for i in full:
            counts[i] = limits[i]
            left -= limits[i]
        waiting = [i for i in waiting if i not in full]
    return counts


def proportions(shapes: Sequence[Sequence[int]], budget: Budget) -> list[int]:
    """What a layer's number of active weights is in proportion to.

    `uniform`: its number of weights. `erk`: the sum of its dimensions, out + in + kernel height + kernel width
    (Erdős-Rényi-Kernel; Evci et al. 2020, "Rigging the Lottery", section 3), which gives small layers the higher
    density. For a linear layer that is Erdős-Rényi (Mocanu et al. 2018).
    """
    if budget == "erk":
        return [sum(shape) for shape in shapes]
    return [math.prod(shape) for shape in shapes]
