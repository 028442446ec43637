"""A histogram of magnitudes whose counts depend on the values alone, never on their order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import CalibrationError, OptionError

BINS = 2048

# What is counted at a time: the block and its two buffers stay in a core's cache.
_BLOCK_VALUES = 1 << 15
# Below this range BINS / range would leave float32. Values that small count in bin 0.
_LEAST_EXPONENT = -100
# Percentages are decimals: 100 - 99.99 must cut one value of 10,000, not one more.
_PERCENT_STEPS = 1_000_000


class Extent(NamedTuple):
    """The least and the largest of some values."""

    minimum: float
    maximum: float

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(-self.minimum, self.maximum)

    @property
    def with_zero(self) -> Extent:
        """The extent of these values and 0, which every quantizer has to hit."""
        return Extent(min(self.minimum, 0.0), max(self.maximum, 0.0))

    def union(self, other: Extent | None) -> Extent:
        """Return the extent of both."""
        if other is None:
            return self
        return Extent(min(self.minimum, other.minimum), max(self.maximum, other.maximum))


def extent_of(values: NDArray[np.float32]) -> Extent:
    """Return the extent of `values`; raises CalibrationError where there is none."""
    values = np.asarray(values, np.float32)
    if values.size == 0:
        raise CalibrationError("an activation without values: leave out clips this short")
    # Adding 0 makes a zero of -0.0, so that the order of the values cannot be told from its sign.
    extent = Extent(float(values.min()) + 0.0, float(values.max()) + 0.0)
    if not math.isfinite(extent.maximum - extent.minimum):  # NaN passes through min and max
        raise CalibrationError(
            "an activation holds NaN or infinite values: check that the float model "
            "transcribes this clip, or leave the clip out"
        )
    return extent


def array_from_extent(extent: Extent | None) -> NDArray[np.float64]:
    """Return minimum and maximum, NaN twice for None."""
    return np.array((math.nan, math.nan) if extent is None else extent, np.float64)


def extent_from_array(array: NDArray[np.generic]) -> Extent | None:
    """Return the extent of `array_from_extent`."""
    minimum, maximum = array.tolist()
    return None if math.isnan(minimum) else Extent(minimum, maximum)


class Histogram:
    """Counts of |x| in BINS equal bins from 0 to a power of two just above the largest |x|.

    A range of that kind makes every bin edge exact in float32, and makes doubling it a merge of
    bins in pairs. So the counts are those of one pass over all values with the final range,
    however the values were ordered, split or shared out.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)
        self._exponent: int | None = None
        self._extent: Extent | None = None
        self._zeros = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many values fell into each bin, read-only."""
        view = self._counts.view()
        view.flags.writeable = False
        return view

    @property
    def total(self) -> int:
        """How many values were added."""
        return int(self._counts.sum())

    @property
    def zeros(self) -> int:
        """How many of them were exactly zero."""
        return self._zeros

    @property
    def extent(self) -> Extent | None:
        """The least and the largest value with their signs, None before the first."""
        return self._extent

    @property
    def amax(self) -> float:
        """The largest magnitude, 0 before the first value."""
        return 0.0 if self._extent is None else self._extent.amax

    @property
    def range(self) -> float | None:
        """The upper edge of the last bin, None as long as there were only zeros."""
        return None if self._exponent is None else 2.0**self._exponent

    @property
    def width(self) -> float:
        """The width of a bin; raises CalibrationError as long as there were only zeros."""
        if self._exponent is None:
            raise CalibrationError(
                "the activation only ever saw zeros: calibrate with other audio, "
                "or leave its layer in float"
            )
        return 2.0**self._exponent / BINS

    @property
    def edges(self) -> NDArray[np.float64]:
        """The BINS + 1 edges."""
        return np.arange(BINS + 1, dtype=np.float64) * self.width

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * self.width

    def add(self, values: NDArray[np.float32], extent: Extent | None = None) -> None:
        """Count `values`; `extent` is theirs where the caller has it already.

        Raises CalibrationError, and counts nothing, for NaN, infinity or no value at all.
        """
        flat = np.asarray(values, np.float32).reshape(-1)
        extent = extent_of(flat) if extent is None else extent
        self._extent = extent.union(self._extent)
        self._widen(_exponent_above(extent.amax))
        if self._exponent is None:
            self._counts[0] += flat.size
            self._zeros += flat.size
        else:
            self._count(flat, np.float32(BINS / 2.0**self._exponent))

    def _count(self, flat: NDArray[np.float32], bins_per_unit: np.float32) -> None:
        room = min(flat.size, _BLOCK_VALUES)
        scaled, bins = np.empty(room, np.float32), np.empty(room, np.int32)
        is_zero = np.empty(room, np.bool_)
        for start in range(0, flat.size, _BLOCK_VALUES):
            block = flat[start : start + _BLOCK_VALUES]
            scaled, bins, is_zero = scaled[: block.size], bins[: block.size], is_zero[: block.size]
            self._zeros += int(np.count_nonzero(np.equal(block, 0, out=is_zero)))
            # Exact, as bins_per_unit is a power of two; the cast to int drops the fraction.
            np.multiply(block, bins_per_unit, out=scaled)
            np.copyto(bins, scaled, casting="unsafe")
            np.abs(bins, out=bins)
            self._counts += np.bincount(bins, minlength=BINS)

    def _counts_at(self, exponent: int | None) -> NDArray[np.int64]:
        """Return a copy of the counts as they are with a range of 2**exponent, or the present."""
        if self._exponent is None or exponent is None:
            return self._counts.copy()
        merged = min(2 ** (exponent - self._exponent), BINS)
        counts = np.zeros(BINS, np.int64)
        counts[: BINS // merged] = self._counts.reshape(-1, merged).sum(axis=1)
        return counts

    def _widen(self, exponent: int | None) -> None:
        if exponent is not None and (self._exponent is None or exponent > self._exponent):
            self._counts, self._exponent = self._counts_at(exponent), exponent

    def merge(self, other: Histogram) -> None:
        """Add what `other` counted."""
        if other._extent is None:
            return
        self._widen(other._exponent)
        self._counts = self._counts + other._counts_at(self._exponent)
        self._zeros += other._zeros
        self._extent = other._extent.union(self._extent)

    def last_kept_bin(self, percent_cut: float) -> int:
        """Return the bin that holds the (100 - percent_cut)-th percentile.

        That is the first at which the bins so far hold (100 - percent_cut) % of all values; with
        0 it is the last that holds any. Raises OptionError outside 0 <= percent_cut < 100.
        """
        if not 0 <= percent_cut < 100:
            raise OptionError(f"cut {percent_cut} % of the values: give 0 or more, and below 100")
        kept = (100 - Fraction(percent_cut).limit_denominator(_PERCENT_STEPS)) / 100
        needed = math.ceil(self.total * kept)
        return int(np.searchsorted(np.cumsum(self._counts), needed))

    def quantile_edge(self, percent_cut: float) -> float:
        """Return the upper edge of the last kept bin, and never more than the largest magnitude."""
        return min((self.last_kept_bin(percent_cut) + 1) * self.width, self.amax)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the state as arrays; a range of 0 and an extent of NaN stand for None."""
        return {
            "counts": self._counts.copy(),
            "range": np.array(self.range or 0.0),
            "extent": array_from_extent(self._extent),
            "zeros": np.array(self._zeros, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Histogram:
        """Return the histogram of `to_arrays`."""
        histogram = cls()
        histogram._counts[:] = arrays["counts"]
        upper = float(arrays["range"].item())
        histogram._exponent = math.frexp(upper)[1] - 1 if upper > 0 else None
        histogram._extent = extent_from_array(arrays["extent"])
        histogram._zeros = int(arrays["zeros"].item())
        return histogram


def _exponent_above(amax: float) -> int | None:
    """Return the least k with 2**k > amax, None for 0."""
    return None if amax == 0 else max(math.frexp(amax)[1], _LEAST_EXPONENT)
