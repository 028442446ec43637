"""What a row of timings says: percentiles, spread, and how sure a ratio of two rows is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NS_PER_SECOND = 1e9
# Tukey's fences: what lies beyond is shown as an outlier, and counts like any other run.
_FENCE_QUARTILE_RANGES = 1.5


def outliers_of(values: Floats, lower_quartile: float, upper_quartile: float) -> NDArray[np.bool_]:
    """Return which of the values lie beyond Tukey's fences."""
    reach = _FENCE_QUARTILE_RANGES * (upper_quartile - lower_quartile)
    return (values < lower_quartile - reach) | (values > upper_quartile + reach)


@dataclass(frozen=True)
class LatencyStats:
    """Seconds a run; `outliers` are the runs beyond Tukey's fences, which are not left out."""

    runs: int
    mean: float
    least: float
    lower_quartile: float
    p50: float
    upper_quartile: float
    p90: float
    p99: float
    most: float
    outliers: int

    @classmethod
    def from_nanoseconds(cls, samples: Sequence[int]) -> LatencyStats:
        """Return the statistics of at least one run; percentiles are interpolated."""
        seconds = np.asarray(samples, np.float64) / _NS_PER_SECOND
        low, p25, p50, p75, p90, p99, high = np.percentile(seconds, [0, 25, 50, 75, 90, 99, 100])
        beyond = outliers_of(seconds, p25, p75)
        return cls(
            runs=len(seconds),
            mean=float(seconds.mean()),
            least=float(low),
            lower_quartile=float(p25),
            p50=float(p50),
            upper_quartile=float(p75),
            p90=float(p90),
            p99=float(p99),
            most=float(high),
            outliers=int(beyond.sum()),
        )

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a share of the median."""
        return (self.upper_quartile - self.lower_quartile) / self.p50


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians and the interval it lies in."""

    value: float
    low: float
    high: float
    confidence: float


def ratio_of_medians(
    numerator: Sequence[int],
    denominator: Sequence[int],
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Ratio:
    """Return the ratio of the medians of two rows of timings, with its bootstrap interval.

    Rows of one length come from interleaved rounds and are drawn in pairs, so that what slowed a
    whole round down cancels out.
    """
    first, second = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(first), (resamples, len(first)))
    paired = len(first) == len(second)
    others = drawn if paired else rng.integers(0, len(second), (resamples, len(second)))
    ratios = medians_of_rows(first[drawn]) / medians_of_rows(second[others])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return Ratio(float(np.median(first) / np.median(second)), float(low), float(high), confidence)


def medians_of_rows(values: Floats) -> Floats:
    """Return what `np.median` does along the last axis, in half the time for short rows."""
    ordered = np.sort(values, axis=-1)
    middle = values.shape[-1] // 2
    # Of an odd number both are the same one.
    return np.asarray((ordered[..., middle] + ordered[..., ~middle]) / 2, np.float64)
