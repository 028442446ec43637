from __future__ import annotations

import numpy as np
import pytest

from speechquant.benchmarks.report.statistics import (
    LatencyStats,
    medians_of_rows,
    ratio_of_medians,
)

MS = 1_000_000


def test_percentiles_worked_by_hand() -> None:
    stats = LatencyStats.from_nanoseconds([value * MS for value in (5, 1, 3, 2, 4)])
    assert (stats.least, stats.p50, stats.most) == (0.001, 0.003, 0.005)
    assert (stats.lower_quartile, stats.upper_quartile) == (0.002, 0.004)
    # Between the 4th and the 5th of five: 0.9 * 4 = 3.6, so 4 + 0.6.
    assert stats.p90 == pytest.approx(0.0046)
    assert stats.p99 == pytest.approx(0.00496)
    assert stats.spread == pytest.approx(2 / 3)
    assert (stats.runs, stats.outliers, stats.mean) == (5, 0, pytest.approx(0.003))


def test_an_outlier_is_counted_and_kept() -> None:
    stats = LatencyStats.from_nanoseconds([10 * MS] * 8 + [11 * MS, 50 * MS])
    assert stats.outliers == 2  # the quartiles are equal, so all that differs is beyond them
    assert stats.most == 0.05


def test_one_run_has_no_spread() -> None:
    stats = LatencyStats.from_nanoseconds([7 * MS])
    assert (stats.p99, stats.spread, stats.outliers) == (0.007, 0.0, 0)


def test_what_slows_a_whole_round_cancels_out() -> None:
    rounds = np.random.default_rng(1).uniform(1.0, 3.0, 31)
    base = [int(value * 100 * MS) for value in rounds]
    half = [value // 2 for value in base]
    paired = ratio_of_medians(base, half)
    assert paired.value == pytest.approx(2.0)
    assert (paired.low, paired.high) == (pytest.approx(2.0), pytest.approx(2.0))
    loose = ratio_of_medians(base, half[:-1])
    assert loose.low < 1.8 < 2.2 < loose.high


def test_interval_covers_the_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        first, second = rng.normal(2.0, 0.2, (2, 25)) * 50 * MS
        found = ratio_of_medians(first.astype(int), second.astype(int), seed=trial, resamples=500)
        covered += found.low <= 1.0 <= found.high
    assert 180 <= covered <= 200


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_medians_of_rows_are_those_of_numpy(count: int) -> None:
    rows = np.random.default_rng(0).integers(0, 5, (50, count)) / 7
    assert np.array_equal(medians_of_rows(rows), np.median(rows, axis=1))
