from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.histogram import BINS, Extent, Histogram
from speechquant.core.errors import CalibrationError, OptionError

Values = NDArray[np.float32]


def histogram_of(*parts: Values | list[float]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def assert_same(found: Histogram, expected: Histogram) -> None:
    assert found.range == expected.range
    assert found.extent == expected.extent
    assert found.zeros == expected.zeros
    np.testing.assert_array_equal(found.counts, expected.counts)


def mixed(count: int, seed: int = 0) -> Values:
    """A quiet start, speech-like middle with exact zeros, and outliers of 1000 times at the end."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count, np.float32)
    values[: count // 4] *= np.float32(1e-4)
    values[count // 2 :: 7] = 0
    values[-(count // 1000) :] *= 1000
    return values


def test_bins_worked_by_hand() -> None:
    histogram = histogram_of([0.0, 0.25, -3.0, 3.999, 2.0])
    assert histogram.range == 4.0
    assert histogram.width == 4.0 / 2048
    assert histogram.extent == Extent(-3.0, float(np.float32(3.999)))
    assert (histogram.total, histogram.zeros) == (5, 1)
    assert np.flatnonzero(histogram.counts).tolist() == [0, 128, 1024, 1536, 2047]
    assert histogram.edges[1536] == 3.0
    assert histogram.centres[0] == 4.0 / 4096


@pytest.mark.parametrize(
    ("largest", "upper"), [(1.0, 2.0), (0.999, 1.0), (0.5, 1.0), (3e38, 2.0**128), (5e-5, 2.0**-14)]
)
def test_range_is_the_power_of_two_strictly_above(largest: float, upper: float) -> None:
    assert histogram_of([-largest]).range == upper


def test_values_on_an_edge_belong_to_the_bin_above() -> None:
    edges = (np.arange(BINS) / BINS).astype(np.float32)
    below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(histogram_of(edges).counts, np.ones(BINS))
    np.testing.assert_array_equal(histogram_of([0.9999], below).counts[:-2], np.ones(BINS - 2))


def test_zeros_have_no_range_until_a_value_comes() -> None:
    histogram = histogram_of(np.zeros(10, np.float32), [-0.0])
    assert histogram.range is None
    assert (histogram.counts[0], histogram.zeros, histogram.amax) == (11, 11, 0.0)
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        histogram.width  # noqa: B018
    histogram.add(np.array([1e-6], np.float32))
    assert histogram.range == 2.0**-19
    assert (histogram.counts[0], histogram.total) == (11, 12)


def test_values_too_small_for_float32_arithmetic_count_in_the_first_bin() -> None:
    histogram = histogram_of([1e-45, 1e-40])
    assert histogram.counts[0] == 2
    assert (histogram.zeros, histogram.range) == (0, 2.0**-100)


def test_counts_do_not_depend_on_order_or_splits() -> None:
    values = mixed(200_000)
    expected = histogram_of(values)
    random = np.random.default_rng(1)
    orders: list[Callable[[Values], Values]] = [np.sort, np.flip, random.permutation]
    for order in orders:
        splits = np.sort(random.choice(np.arange(1, values.size), 40, replace=False))
        assert_same(histogram_of(*np.split(order(values), splits)), expected)


def test_shards_merge_to_the_same() -> None:
    values = mixed(100_000)
    shards = [histogram_of(part) for part in np.split(values, [10, 30_000, 99_950])]
    silent = histogram_of([0.0, 0.0])
    for order in (shards, shards[::-1]):
        merged = Histogram()
        for shard in [*order, silent, Histogram()]:
            before = shard.counts.copy()
            merged.merge(shard)
            np.testing.assert_array_equal(shard.counts, before)
        assert_same(merged, histogram_of(values, [0.0, 0.0]))
    silent.merge(shards[0])
    assert_same(silent, histogram_of([0.0, 0.0], values[:10]))


def test_shapes_and_strides_do_not_matter() -> None:
    values = mixed(6000).reshape(20, 30, 10)
    before = values.copy()
    assert_same(histogram_of(values.transpose(2, 0, 1)[:, ::2]), histogram_of(values[::2]))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_counted(bad: float) -> None:
    histogram = histogram_of([1.0, -2.0])
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        histogram.add(np.array([5.0, bad, 7.0], np.float32))
    assert_same(histogram, histogram_of([1.0, -2.0]))


def test_no_values_are_refused() -> None:
    with pytest.raises(CalibrationError, match="without values"):
        Histogram().add(np.empty((1, 0, 8), np.float32))


def test_counts_beyond_float32() -> None:
    histogram = Histogram()
    for _ in range(17):
        histogram.add(np.full(2**20, 3.0, np.float32))
    histogram.add(np.full(1, 3.0, np.float32))
    assert histogram.counts[1536] == 17 * 2**20 + 1  # float32 stops at 2^24
    shard = Histogram.from_arrays(histogram.to_arrays())
    for _ in range(12):
        shard.merge(shard)
    assert shard.total == (17 * 2**20 + 1) * 4096  # beyond int32


def test_counts_cannot_be_written_from_outside() -> None:
    with pytest.raises(ValueError, match="read-only"):
        histogram_of([1.0]).counts[0] = 3


def test_arrays_hold_all_of_it() -> None:
    for histogram in (histogram_of(mixed(1000)), histogram_of([0.0]), Histogram()):
        assert_same(Histogram.from_arrays(histogram.to_arrays()), histogram)


@pytest.mark.parametrize(
    ("percent_cut", "last_bin"),
    [
        (0, 2000),
        (0.001, 2000),
        (0.1, 1999),
        (0.10000001, 1999),
        (0.3, 1997),
        (0.29, 1998),
        (50, 1500),
    ],
)
def test_last_kept_bin_worked_by_hand(percent_cut: float, last_bin: int) -> None:
    # One value in each of the bins 1001 to 2000: 0.1 % is one value.
    histogram = histogram_of(np.arange(1001, 2001) + 0.5)
    assert histogram.range == 2048.0
    assert histogram.last_kept_bin(percent_cut) == last_bin
    assert histogram.quantile_edge(percent_cut) == min(last_bin + 1, 2000.5)


def test_last_kept_bin_is_not_moved_by_how_a_percentage_rounds() -> None:
    histogram = histogram_of(np.arange(1001, 2001) + 0.5)
    assert 3 * 0.1 > 0.3
    assert 100 - 99.7 < 0.3
    assert histogram.last_kept_bin(3 * 0.1) == histogram.last_kept_bin(100 - 99.7) == 1997


@pytest.mark.parametrize("percent_cut", [-0.1, 100, math.nan])
def test_impossible_percentages_are_refused(percent_cut: float) -> None:
    with pytest.raises(OptionError, match="below 100"):
        histogram_of([1.0]).last_kept_bin(percent_cut)


def assert_agrees_with_exact(histogram: Histogram, magnitudes: Values) -> None:
    """Compare with all the magnitudes sorted, in float64."""
    exact = np.sort(magnitudes)
    borders = np.searchsorted(exact, histogram.edges.astype(np.float32))
    np.testing.assert_array_equal(histogram.counts, np.diff(borders))
    assert histogram.total == exact.size
    assert histogram.zeros == np.searchsorted(exact, 0, side="right")
    for thousandths in [*range(501), 1000, 10_000, 50_000, 90_000]:
        needed = exact.size - exact.size * thousandths // 100_000
        quantile = float(exact[needed - 1])
        edge = histogram.quantile_edge(thousandths / 1000)
        assert 0 <= edge - quantile <= histogram.width


def test_quantiles_are_exact_to_a_bin() -> None:
    values = mixed(2_000_000)
    histogram = histogram_of(*np.split(values, [100_000, 700_000, 1_500_000]))
    assert_agrees_with_exact(histogram, np.abs(values))


@pytest.mark.slow
def test_quantiles_of_100_million_values_are_exact_to_a_bin() -> None:
    chunks, size = 100, 1_000_000
    magnitudes = np.empty(chunks * size, np.float32)
    histogram = Histogram()
    for chunk in range(chunks):
        values = np.random.default_rng(chunk).standard_normal(size, np.float32)
        values *= np.float32(1e-4 if chunk < 10 else 1)
        if chunk >= 98:
            values[:500] *= 1000
        histogram.add(values)
        np.abs(values, out=magnitudes[chunk * size : (chunk + 1) * size])
    assert histogram.amax > 1000
    assert_agrees_with_exact(histogram, magnitudes)
