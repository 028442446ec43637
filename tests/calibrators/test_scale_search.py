from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.histogram import Histogram
from speechquant.calibrators.scale_search import search_scales
from speechquant.core.errors import CalibrationError

PERCENTS = [step / 100 for step in range(51)]


def histogram_of(values: NDArray[np.floating]) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def search_scale(histogram: Histogram, percent: float, bits: int, *, use_mse: bool) -> float:
    """S_c of one percentile."""
    return float(search_scales(histogram, [percent], bits, use_mse=use_mse)[0])


def shapes() -> dict[str, NDArray[np.floating]]:
    random = np.random.default_rng(7)
    return {
        "normal": random.standard_normal(200),
        "laplace": random.laplace(size=200),
        "heavy tail": random.standard_t(2, 200),
        "uniform": random.uniform(0, 3, 150),
        "after a gelu": np.where(random.random(250) < 0.8, -0.1, random.exponential(size=250)),
        "mostly zero": np.where(random.random(250) < 0.9, 0, random.standard_normal(250)),
        "tiny": random.standard_normal(150) * 1e-7,
    }


def scale_by_double_loop(histogram: Histogram, percent: float, bits: int) -> float:
    """Algorithm 2 as the paper writes it, with the clamp, over the bins that hold something."""
    highest = 2 ** (bits - 1) - 1
    counts, width = histogram.counts.tolist(), histogram.width
    # In whole numbers: hundredths of a percent.
    needed = (10_000 - round(percent * 100)) * histogram.total
    cumulative, clipped = 0, 0
    while cumulative * 10_000 < needed:
        cumulative += counts[clipped]
        clipped += 1
    occupied = [((j + 0.5) * width, counts[j]) for j in range(clipped) if counts[j]]
    least, best = float("inf"), 0.0
    for i in range(clipped):
        scale = (i + 0.5) * width / highest
        error = 0.0
        for centre, count in occupied:
            level = min(max(round(centre / scale), -highest), highest)
            error += count * (centre - level * scale) ** 2
        if error < least:
            least, best = error, scale
    return best


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_least_error_is_that_of_a_double_loop(shape: str, bits: int) -> None:
    histogram = histogram_of(shapes()[shape])
    percents = [0.0, 0.5]
    expected = [scale_by_double_loop(histogram, percent, bits) for percent in percents]
    found = search_scales(histogram, percents, bits, use_mse=True)
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_least_error_is_that_of_a_double_loop_with_every_bin_full() -> None:
    random = np.random.default_rng(0)
    histogram = histogram_of(random.laplace(size=1_000_000))
    expected = scale_by_double_loop(histogram, 0.3, 8)
    assert search_scale(histogram, 0.3, 8, use_mse=True) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("use_mse", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_all_percentages_at_once_are_those_one_by_one(bits: int, use_mse: bool) -> None:
    histogram = histogram_of(np.random.default_rng(3).standard_t(3, 50_000))
    percents = PERCENTS[::-5]
    at_once = search_scales(histogram, percents, bits, use_mse=use_mse)
    single = [search_scale(histogram, p, bits, use_mse=use_mse) for p in percents]
    assert at_once.tolist() == single
    assert len(set(single)) > 5


def test_equal_errors_give_the_lowest_bin() -> None:
    # Two bits: 0 and one level. Values in the bins 1021 and 1024, c = 1021.5 and 1024.5: the level
    # 1021.5 + t errs by t^2 + (3 - t)^2, so t = 1 and t = 2, bins 1022 and 1023, err the same.
    width = 2.0**-10
    histogram = histogram_of(np.array([1021.5, 1024.5]) * width)
    assert histogram.width == width
    assert search_scale(histogram, 0, 2, use_mse=True) == 1022.5 * width


def test_without_mse_the_top_is_the_edge_or_the_true_maximum() -> None:
    # 1,000 values, one in each of the bins 1000 to 1999; bins are 1 wide.
    histogram = histogram_of(np.arange(1000, 2000) + 0.25)
    found = search_scales(histogram, [0.0, 0.01, 0.1, 0.25, 0.5], 8, use_mse=False) * 127
    np.testing.assert_allclose(found, [1999.25, 1999.25, 1999.0, 1998.0, 1995.0], rtol=1e-15)


def test_values_all_in_one_bin() -> None:
    histogram = histogram_of(np.full(1000, 5.0))
    width = 8 / 2048
    assert search_scale(histogram, 0, 8, use_mse=False) == 5 / 127
    for scale in search_scales(histogram, [0.0, 0.5], 8, use_mse=True):
        assert scale == pytest.approx((5 + width / 2) / 127, rel=1e-15)


def test_values_all_in_the_first_bin() -> None:
    histogram = histogram_of(np.array([0.0] * 999 + [1.0]))
    assert search_scale(histogram, 0.5, 8, use_mse=False) == 2 / 2048 / 127
    assert search_scale(histogram, 0.5, 8, use_mse=True) == 1 / 2048 / 127


@pytest.mark.parametrize("use_mse", [False, True])
def test_zeros_alone_are_refused(use_mse: bool) -> None:
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        search_scale(histogram_of(np.zeros(5)), 0, 8, use_mse=use_mse)
    with pytest.raises(CalibrationError, match="only ever saw zeros"):
        search_scale(Histogram(), 0.1, 8, use_mse=use_mse)
