"""Which layer of a teacher each layer of a student learns from."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from speechquant.students.kdq.matching import (
    DYNAMIC,
    RESTRAINED,
    STATIC,
    increasing_map,
    map_of,
    nearest_map,
    static_map,
)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(4, 6, [0, 2, 3, 5]), (2, 6, [2, 5]), (6, 12, [1, 3, 5, 7, 9, 11]), (3, 3, [0, 1, 2])],
)
def test_static_matching_spreads_evenly_up_to_the_last_layer(
    student: int, teacher: int, expected: list[int]
) -> None:
    assert static_map(student, teacher) == expected


def test_dynamic_matching_takes_the_nearest_of_each() -> None:
    assert nearest_map([[3.0, 1.0, 2.0], [0.5, 4.0, 4.0], [9.0, 1.0, 1.0]]) == [1, 0, 1]


@pytest.mark.parametrize(("student", "teacher"), [(1, 1), (1, 4), (2, 2), (2, 6), (3, 5), (4, 6)])
def test_restrained_matching_is_the_best_of_all_increasing_maps(student: int, teacher: int) -> None:
    rng = np.random.default_rng(student * 10 + teacher)
    for _ in range(50):
        costs = rng.integers(0, 20, (student, teacher))
        sums = {
            layers: costs[range(student), layers].sum()
            for layers in combinations(range(teacher), student)
        }
        found = tuple(increasing_map(costs))
        assert sums[found] == min(sums.values())


def test_restrained_matching_keeps_a_shallow_layer_from_a_deep_one() -> None:
    costs = [[5.0, 4.0, 0.0], [0.0, 3.0, 2.0]]
    assert nearest_map(costs) == [2, 0]
    assert increasing_map(costs) == [1, 2]


def test_a_student_deeper_than_its_teacher_has_no_increasing_map() -> None:
    with pytest.raises(ValueError, match="3 layers cannot learn from 2"):
        increasing_map(np.zeros((3, 2)))


def test_each_matching_by_its_name() -> None:
    costs = np.array([[5.0, 4.0, 0.0], [0.0, 3.0, 2.0]])
    found = {name: map_of(name, lambda: costs, (2, 3)) for name in (STATIC, DYNAMIC, RESTRAINED)}
    assert found == {STATIC: [0, 2], DYNAMIC: [2, 0], RESTRAINED: [1, 2]}
