"""Ranges that move towards the least distance, on distances that can be told by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from speechquant.calibrators.range_fit import STEPS, fitted
from speechquant.core.errors import CalibrationError
from speechquant.core.scales import Bits, Scale, ScaleTable

# The scale under which each activation adds nothing, and how much it weighs.
BEST = {"a": (0.5, 100.0), "b": (2.0, 10.0), "c": (1.0, 1e-4)}


def table_of(symmetric: bool = True, **scales: float) -> ScaleTable:
    zero_point = 0 if symmetric else 3
    rows = {name: Scale(name, scale, 31 * scale, zero_point) for name, scale in scales.items()}
    return ScaleTable("m" * 64, "balanced", Bits(6, 6), rows, symmetric=symmetric)


class Told:
    """A distance that counts how often it is asked, and ends after some."""

    def __init__(
        self,
        ends_after: float = math.inf,
        zero_point: int | None = None,
        weights_add: float = 0.0,
    ) -> None:
        self.asked, self._ends_after, self._zero_point = 0, ends_after, zero_point
        self._weights_add = weights_add

    def __call__(self, table: ScaleTable, bound: float = math.inf) -> float:
        self.asked += 1
        if self.asked > self._ends_after:
            raise KeyboardInterrupt
        found = self._weights_add
        for name, row in table.tensors.items():
            best, weight = BEST[name]
            found += weight * abs(math.log(row.scale / best))
            if self._zero_point is not None:
                found += weight * abs(row.zero_point - self._zero_point)
        return found if found <= bound else math.inf


def test_the_activations_that_err_most_move_and_the_others_stay(tmp_path: Path) -> None:
    table = table_of(a=1.0, b=1.0, c=1.2)
    fit = fitted(table, Told(), tmp_path / "fit.json")
    assert fit.moved == ("a", "b")
    assert fit.after < 0.1 * fit.before and fit.after == Told()(fit.table)
    for name in fit.moved:
        assert abs(math.log(fit.table.tensors[name].scale / BEST[name][0])) < math.log(STEPS[1])
        row = fit.table.tensors[name]
        assert row.amax == pytest.approx(31 * row.scale)
    assert fit.table.tensors["c"] == table.tensors["c"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_activation_moves_too(tmp_path: Path, symmetric: bool) -> None:
    fit = fitted(table_of(symmetric, a=1.0), Told(), tmp_path / "fit.json")
    assert fit.moved == ("a",) and fit.after < 0.2 * fit.before


def test_what_the_weights_add_is_no_activations_harm(tmp_path: Path) -> None:
    fit = fitted(table_of(a=1.0, b=2.0), Told(weights_add=50.0), tmp_path / "fit.json")
    assert fit.moved == ("a",)


def test_zero_moves_to_another_level_where_it_may(tmp_path: Path) -> None:
    fit = fitted(table_of(symmetric=False, a=1.0), Told(zero_point=5), tmp_path / "fit.json")
    row = fit.table.tensors["a"]
    assert row.zero_point == 5
    assert row.amax == pytest.approx((63 - 5) * row.scale)  # the largest level above zero
    symmetric = fitted(table_of(a=1.0), Told(zero_point=5), tmp_path / "other.json")
    assert symmetric.table.tensors["a"].zero_point == 0


@pytest.mark.parametrize("ends_after", [3, 7, 9, 14])
def test_a_killed_fit_goes_on(tmp_path: Path, ends_after: int) -> None:
    table = table_of(a=1.0, b=1.0, c=1.2)
    whole = Told()
    expected = fitted(table, whole, tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        fitted(table, Told(ends_after), tmp_path / "fit.json")
    rest = Told()
    assert fitted(table, rest, tmp_path / "fit.json") == expected
    assert rest.asked < whole.asked
    steps: list[tuple[int, int]] = []
    again = fitted(table, Told(0), tmp_path / "fit.json", lambda *step: steps.append(step))
    assert again == expected and steps[-1] == (7, 7)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"rows": {}}', '{"weights_alone": 0.0, "before": 1.0, "alone": {"z": 1.0}}'],
)
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"fit\.json: not what a fit had done .*; delete it"):
        fitted(table_of(a=1.0), Told(), tmp_path / "fit.json")


def test_outputs_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="values that are no numbers"):
        fitted(table_of(a=1.0), lambda table, bound=math.inf: math.nan, tmp_path / "fit.json")


def test_a_table_without_activations(tmp_path: Path) -> None:
    fit = fitted(table_of(), Told(), tmp_path / "fit.json")
    assert fit.moved == () and fit.table == table_of()
