"""The calibration methods that StableQuant is compared with: max, percentile, entropy and mse.

The last three follow NVIDIA's pytorch-quantization. The histogram differs: NVIDIA's ends at the
largest magnitude, or a bin after it; ours ends at a power of two above. So the bins after the last
that holds a value are left out, and an edge above the largest magnitude gives way to it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.histogram import BINS, Histogram
from speechquant.calibrators.scale_search import least_error_bins
from speechquant.core.errors import CalibrationError
from speechquant.core.scales import largest_level

# NVIDIA's: fewer of its 2048 bins, of which the last holds the largest magnitude, are not tried.
START_BIN = 128


def first_tried_bin(used: int) -> int:
    """Return START_BIN of 2048 in proportion to the bins that are used."""
    return START_BIN * used // BINS


def max_amax(histogram: Histogram) -> float:
    """Return the largest magnitude; raises CalibrationError where there were only zeros."""
    return histogram.quantile_edge(0)


def percentile_amax(histogram: Histogram, percent: float = 99.99) -> float:
    """Return the edge above the `percent`-th percentile of the magnitudes.

    NVIDIA takes the edge below, which is 0 where most values are in the first bin.
    """
    return histogram.quantile_edge(100 - percent)


def mse_amax(histogram: Histogram, bits: int, percent_cut: float = 0.0) -> float:
    """Return the bin centre, from `first_tried_bin` on, that as the largest level errs least.

    What lies above the (100 - percent_cut)-th percentile does not count.
    """
    last = histogram.last_kept_bin(percent_cut)
    (best,) = least_error_bins(histogram, [last], bits, first_bin=first_tried_bin(last + 1))
    return float(histogram.centres[best])


def entropy_amax(histogram: Histogram, bits: int, percent_cut: float = 0.0) -> float:
    """Return the edge, from `first_tried_bin` on, that keeps the distribution best (KL divergence).

    Ties go to the highest edge. With as many levels as bins nothing is lost by the largest, and
    fewer bins than levels are not tried: nothing would be lost but what is cut off. What lies above
    the (100 - percent_cut)-th percentile does not count.
    """
    used = histogram.last_kept_bin(percent_cut) + 1
    levels = largest_level(bits) + 1
    if levels >= used:
        return histogram.quantile_edge(percent_cut)
    counts = histogram.counts[:used].astype(np.float64)
    counts[0] = counts[1]  # NVIDIA's too: zeros are exact at any scale and would outweigh the rest
    tried = range(max(first_tried_bin(used), levels), used + 1)
    divergences = [_divergence(counts, edge, levels) for edge in reversed(tried)]
    best = tried[-1 - int(np.argmin(divergences))]
    return min(best * histogram.width, histogram.amax)


def _divergence(counts: NDArray[np.float64], edge: int, levels: int) -> float:
    """Return the KL divergence of the first `edge` bins, the rest in the last, from their levels.

    Each level spreads what its bins hold evenly over those of them that hold anything.
    """
    kept = counts[:edge]
    outliers = float(counts[edge:].sum())
    if outliers and not kept[-1]:
        return math.inf  # the levels say that the last bin never occurs
    (occupied,) = np.nonzero(kept)
    if not occupied.size:
        return math.inf
    level = occupied * levels // edge
    sizes = np.bincount(level, minlength=levels)
    sums = np.bincount(level, kept[occupied], minlength=levels)
    spread = sums[level] / sizes[level]
    reference = kept[occupied]
    reference[-1] += outliers
    ratio = (reference / reference.sum()) / (spread / spread.sum())
    return float((reference * np.log(ratio)).sum() / reference.sum())


def symmetric_scale(amax: float, bits: int) -> float:
    """Return s = amax / Q; raises CalibrationError unless it is above zero."""
    return _usable(amax / largest_level(bits), f"0 to {amax}")


def asymmetric_scale(minimum: float, maximum: float, bits: int) -> tuple[float, int]:
    """Return the scale and zero point of the levels 0 .. 2^bits - 1 over a range that includes 0.

    s = (max - min) / (2^bits - 1), z = round(-min / s). Raises CalibrationError for an empty range.
    """
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = _usable((high - low) / (2**bits - 1), f"{low} to {high}")
    return scale, round(-low / scale)


def _usable(scale: float, values: str) -> float:
    if not (math.isfinite(scale) and scale > 0):
        raise CalibrationError(
            f"values from {values} give the scale {scale}: calibrate with other audio, "
            "or leave the layer in float"
        )
    return scale
