"""Which layer of the teacher each layer of the student learns from: the paper's f(i).

Layers count from zero here, from one in the paper. A cost matrix is [student layers, teacher
layers].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

NO_MATCHING, STATIC, DYNAMIC, RESTRAINED = "none", "static", "dynamic", "restrained"
MATCHINGS = (NO_MATCHING, STATIC, DYNAMIC, RESTRAINED)


def static_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return f(i) = floor(i N / M)."""
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def nearest_map(costs: ArrayLike) -> list[int]:
    """Return the cheapest layer for each by itself: equation 6 or 12."""
    best: list[int] = np.asarray(costs).argmin(axis=1).tolist()
    return best


def increasing_map(costs: ArrayLike) -> list[int]:
    """Return the strictly increasing map of the least sum; of equal ones that of earlier layers.

    `least[j]` is the least sum of the layers so far, of which the last learns from layer j.
    """
    costs = np.asarray(costs, np.float64)
    count, known = costs.shape
    if count > known:
        raise ValueError(f"{count} layers cannot learn from {known} different ones in order")
    least, choices = costs[0], list[list[int]]()
    for row in costs[1:]:
        before = [int(least[:j].argmin()) if j else 0 for j in range(known)]
        reached = np.array([least[before[j]] if j else np.inf for j in range(known)])
        choices.append(before)
        least = reached + row
    found = [int(least.argmin())]
    for before in reversed(choices):
        found.append(before[found[-1]])
    return found[::-1]


def map_of(matching: str, costs: Callable[[], ArrayLike], shape: tuple[int, int]) -> Sequence[int]:
    """Return the map of a matching other than none; `costs` is asked where it needs them."""
    if matching == STATIC:
        return static_map(*shape)
    return nearest_map(costs()) if matching == DYNAMIC else increasing_map(costs())
