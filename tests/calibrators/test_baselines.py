from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.baselines import (
    asymmetric_scale,
    entropy_amax,
    max_amax,
    mse_amax,
    percentile_amax,
    symmetric_scale,
)
from speechquant.calibrators.histogram import Histogram
from speechquant.core.errors import CalibrationError


def histogram_of(values: NDArray[np.floating]) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def just_above_half(values: NDArray[np.floating], share: float = 0.505) -> Histogram:
    """A histogram of few used bins, so that the plain loops below are quick."""
    return histogram_of(values / np.abs(values).max() * share)


def shapes() -> dict[str, NDArray[np.floating]]:
    random = np.random.default_rng(11)
    return {
        "normal": random.standard_normal(100_000),
        "laplace with gaps": random.laplace(size=2_000),
        "outliers": np.append(random.standard_normal(50_000), [30.0, 31.0, 40.0]),
        "half zero": np.maximum(random.standard_normal(50_000), 0),
    }


def entropy_by_loops(bins: list[int], bits: int) -> int:
    """NVIDIA's definition: the number of bins whose quantized distribution diverges least.

    It starts at the 128th of 2048 bins up to the largest magnitude, which is a sixteenth of it.
    """
    bins = [bins[1], *bins[1:]]
    levels = 2 ** (bits - 1)
    least, best = math.inf, 0
    for kept in range(max(len(bins) // 16, levels), len(bins) + 1):
        level_of = [j * levels // kept if bins[j] else -1 for j in range(kept)]
        sums = [0.0] * levels
        for j, level in enumerate(level_of):
            if level >= 0:
                sums[level] += bins[j]
        sizes = Counter(level_of)
        quantized = [sums[level] / sizes[level] if level >= 0 else 0.0 for level in level_of]
        reference = [float(count) for count in bins[:kept]]
        reference[-1] += sum(bins[kept:])
        divergence = divergence_by_loops(reference, quantized)
        if divergence <= least:
            least, best = divergence, kept
    return best


def divergence_by_loops(reference: list[float], quantized: list[float]) -> float:
    total, total_quantized = sum(reference), sum(quantized)
    divergence = 0.0
    for expected, found in zip(reference, quantized, strict=True):
        if expected and not found:
            return math.inf
        if expected:
            p, q = expected / total, found / total_quantized
            divergence += p * math.log(p / q)
    return divergence


def mse_by_loops(counts: list[int], width: float, bits: int) -> float:
    """NVIDIA's definition: the centre, from a sixteenth on, with the least mean squared error."""
    highest = 2 ** (bits - 1) - 1
    least, best = math.inf, 0.0
    for i in range(len(counts) // 16, len(counts)):
        amax = (i + 0.5) * width
        error = 0.0
        for j, count in enumerate(counts):
            if count:
                centre = (j + 0.5) * width
                level = max(-highest, min(highest, round(centre * highest / amax)))
                error += count * (centre - level * amax / highest) ** 2
        if error < least:
            least, best = error, amax
    return best


def used_counts(histogram: Histogram) -> list[int]:
    counts: list[int] = histogram.counts.tolist()
    while not counts[-1]:
        counts.pop()
    return counts


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_is_that_of_plain_loops(shape: str, bits: int) -> None:
    histogram = just_above_half(shapes()[shape])
    edge = entropy_by_loops(used_counts(histogram), bits) * histogram.width
    assert entropy_amax(histogram, bits) == min(edge, histogram.amax)


def test_entropy_cuts_outliers_that_max_keeps() -> None:
    histogram = histogram_of(shapes()["outliers"])
    assert max_amax(histogram) == 40.0
    assert 3.0 < entropy_amax(histogram, 8) < 6.0


@pytest.mark.parametrize("bits", [12, 16])
def test_entropy_with_as_many_levels_as_bins_is_the_maximum(bits: int) -> None:
    assert entropy_amax(histogram_of(shapes()["outliers"]), bits) == 40.0


@pytest.mark.parametrize(
    ("shape", "bits"), [("normal", 4), ("laplace with gaps", 8), ("outliers", 8)]
)
def test_mse_is_that_of_plain_loops(shape: str, bits: int) -> None:
    histogram = just_above_half(shapes()[shape][-800:])
    expected = mse_by_loops(used_counts(histogram), histogram.width, bits)
    assert mse_amax(histogram, bits) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("largest", [1030.5, 1500.5, 2047.5])
def test_the_least_range_is_a_sixteenth_of_the_largest_magnitude(largest: float) -> None:
    # Nearly all values in bins 8 to 10: alone they would choose those.
    histogram = histogram_of(np.append(np.repeat([8.5, 9.5, 10.5], 10**6), largest))
    assert histogram.width == 1.0
    sixteenth = largest / 16
    assert sixteenth - 1 <= mse_amax(histogram, 4) < 1.1 * sixteenth


def test_entropy_tries_ranges_from_a_sixteenth_but_no_fewer_bins_than_levels() -> None:
    falling = np.repeat(np.arange(100) + 0.5, np.arange(100, 0, -1) * 100)
    histogram = histogram_of(np.append(falling, 1500.5))
    assert histogram.width == 1.0
    assert 1500.5 / 16 - 1 <= entropy_amax(histogram, 4) <= 100.0
    assert entropy_amax(histogram, 8) >= 128.0


def test_percentile_is_the_edge_above() -> None:
    # 10,000 values, five in each of the bins 0 to 1999: 99.9 % leaves out the last two bins.
    histogram = histogram_of(np.repeat(np.arange(2000) + 0.5, 5))
    assert percentile_amax(histogram, 99.9) == 1998.0
    assert percentile_amax(histogram) == 1999.5
    assert percentile_amax(histogram, 100) == 1999.5
    assert percentile_amax(histogram, 50) == 1000.0


def test_max_is_the_largest_magnitude() -> None:
    assert max_amax(histogram_of(np.array([0.5, -3.0, 2.0]))) == 3.0


def test_symmetric_scale_worked_by_hand() -> None:
    assert symmetric_scale(12.7, 8) == pytest.approx(0.1)
    assert symmetric_scale(14.0, 4) == 2.0


@pytest.mark.parametrize(
    ("minimum", "maximum", "bits", "scale", "zero_point"),
    [
        (-1.0, 1.55, 8, 0.01, 100),
        (0.0, 25.5, 8, 0.1, 0),
        (3.0, 25.5, 8, 0.1, 0),  # 0 has to be a level
        (-25.5, -3.0, 8, 0.1, 255),
        (-5.0, 10.0, 4, 1.0, 5),
        (-2.5, 12.5, 4, 1.0, 2),  # half to even
        (-3.5, 11.5, 4, 1.0, 4),
    ],
)
def test_asymmetric_scale_worked_by_hand(
    minimum: float, maximum: float, bits: int, scale: float, zero_point: int
) -> None:
    found, found_zero_point = asymmetric_scale(minimum, maximum, bits)
    assert found == pytest.approx(scale)
    assert found_zero_point == zero_point


def test_zeros_alone_are_refused() -> None:
    zeros = histogram_of(np.zeros(5))
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        max_amax(zeros)
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        percentile_amax(zeros)
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        entropy_amax(zeros, 8)
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        mse_amax(zeros, 8)
    with pytest.raises(CalibrationError, match="give the scale 0"):
        symmetric_scale(0.0, 8)
    with pytest.raises(CalibrationError, match="give the scale 0"):
        asymmetric_scale(0.0, 0.0, 8)
