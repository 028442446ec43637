"""S_c(p, m): the scale of one tensor from its histogram (StableQuant, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.histogram import BINS, Histogram
from speechquant.core.scales import largest_level

# A sum of BINS terms of one sign in float64 is off by at most BINS / 2 rounding units each way.
_ROUNDING = 2 * BINS * float(np.finfo(np.float64).eps)


def search_scales(
    histogram: Histogram, clip_percents: Sequence[float], bits: int, *, use_mse: bool
) -> NDArray[np.float64]:
    """Return S_c(p, m) for every p of `clip_percents`, in percent, and m = `use_mse`.

    The tail above the (100 - p)-th percentile is dropped, not folded in. The scale is then the
    top of what is left over Q, or with `use_mse` the bin centre over Q that quantizes what is
    left with the least squared error. Raises CalibrationError where there were only zeros.
    """
    if not use_mse:
        tops = [histogram.quantile_edge(percent) for percent in clip_percents]
        return np.array(tops, np.float64) / largest_level(bits)
    last_bins = [histogram.last_kept_bin(percent) for percent in clip_percents]
    best = least_error_bins(histogram, last_bins, bits)
    return np.array([histogram.centres[bin_] for bin_ in best]) / largest_level(bits)


def least_error_bins(
    histogram: Histogram, last_bins: Sequence[int], bits: int, *, first_bin: int = 0
) -> list[int]:
    """Return, for every last kept bin, the bin whose centre as the largest level errs least.

    The candidates are the bins `first_bin` to the last kept one; ties go to the lowest.
    """
    errors, best = np.zeros(BINS), {}
    counts, start = histogram.counts, 0
    table = _squared_residuals(bits)
    # One clipped histogram is the one before and a few bins more: each bin is summed only once.
    for last in sorted(set(last_bins)):
        errors += counts[start : last + 1].astype(np.float64) @ table[start : last + 1]
        start = last + 1
        best[last] = _least(errors, counts[:start], bits, min(first_bin, last))
    return [best[last] for last in last_bins]


def _least(
    errors: NDArray[np.float64], counts: NDArray[np.int64], bits: int, first_bin: int
) -> int:
    candidates = errors[first_bin : counts.size]
    near = np.flatnonzero(candidates <= candidates.min() * (1 + _ROUNDING)) + first_bin
    if near.size == 1:
        return int(near[0])
    # Equal within float64's rounding: whole numbers tell, on every machine alike.
    return min((_exact_error(counts, int(bin_), bits), int(bin_)) for bin_ in near)[1]


def _residuals(
    centres: NDArray[np.float64], top: NDArray[np.float64] | float, bits: int
) -> NDArray[np.float64]:
    """Return Q * (c_j - clamp(round(c_j / s_i)) * s_i), s_i = top / Q, for centres in half widths.

    Everything here is a whole number below 2^53, so exact. c_j / s_i = Q * c_j / c_i is never half
    way between two levels, as c_i is odd then.
    """
    levels = largest_level(bits)
    nearest = np.minimum(np.rint(levels * centres / top), levels)
    return levels * centres - nearest * top


@lru_cache(maxsize=2)  # 32 MiB each
def _squared_residuals(bits: int) -> NDArray[np.float64]:
    """Return the squared error of bin j (rows) with bin i as the largest level (columns).

    The unit is (half a bin width / Q)^2, so the table depends on nothing but the bits.
    """
    centres = _half_widths(BINS)
    table = np.empty((BINS, BINS))
    for row, centre in zip(table, centres, strict=True):
        row[:] = _residuals(centre, centres, bits) ** 2
    table.flags.writeable = False
    return table


def _exact_error(counts: NDArray[np.int64], candidate: int, bits: int) -> int:
    centres = _half_widths(counts.size)
    residuals = _residuals(centres, 2.0 * candidate + 1, bits).astype(np.int64)
    pairs = zip(counts.tolist(), residuals.tolist(), strict=True)
    return sum(count * residual**2 for count, residual in pairs)


def _half_widths(bins: int) -> NDArray[np.float64]:
    """Return the bin centres in half bin widths: 1, 3, 5 ..."""
    return np.arange(1, 2 * bins, 2, dtype=np.float64)
