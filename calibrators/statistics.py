"""What calibration remembers of every activation while the utterances go by."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.histogram import (
    Extent,
    Histogram,
    array_from_extent,
    extent_from_array,
    extent_of,
)
from speechquant.core.errors import CalibrationError

FORMAT = "speechquant.statistics/2"
# Wagner et al.: minimum and maximum are averaged over this many batches, then they stand.
EMA_BATCHES = 16
EMA_MOMENTUM = 0.9

# What NumPy raises for an .npz file, by the kind of damage.
UNREADABLE_ARCHIVE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile
)  # fmt: skip
_MEND = "delete it and calibrate again"


class TensorStatistics:
    """One activation: the histogram, and the extent of each batch."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self._batches: dict[int, Extent] = {}

    @property
    def averaged_extent(self) -> Extent | None:
        """The moving average of the batches' minima and maxima, None before the first batch."""
        averaged: Extent | None = None
        for _, batch in sorted(self._batches.items()):
            averaged = batch if averaged is None else Extent(*map(_average, averaged, batch))
        return averaged

    def add(self, values: NDArray[np.float32], batch: int, extent: Extent | None = None) -> None:
        """Count `values` of a batch, 0 to EMA_BATCHES - 1; `extent` is theirs where it is known."""
        extent = extent_of(values) if extent is None else extent
        self.histogram.add(values, extent)
        self._batches[batch] = extent.union(self._batches.get(batch))

    def merge(self, other: TensorStatistics) -> None:
        """Add what `other` counted."""
        self.histogram.merge(other.histogram)
        for batch, extent in other._batches.items():
            self._batches[batch] = extent.union(self._batches.get(batch))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the state as arrays; an extent of NaN stands for None."""
        batches = [array_from_extent(self._batches.get(batch)) for batch in range(EMA_BATCHES)]
        return {**self.histogram.to_arrays(), "batches": np.stack(batches)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> TensorStatistics:
        """Return the statistics of `to_arrays`."""
        statistics = cls()
        statistics.histogram = Histogram.from_arrays(arrays)
        for batch, row in enumerate(arrays["batches"]):
            extent = extent_from_array(row)
            if extent is not None:
                statistics._batches[batch] = extent
        return statistics


def _average(old: float, new: float) -> float:
    return EMA_MOMENTUM * old + (1 - EMA_MOMENTUM) * new


class ActivationStatistics:
    """Every activation of one model over a calibration set of `total_utterances`, one at a time.

    The set is cut into at most EMA_BATCHES batches. The utterances may come in any order, and parts
    of the set may be counted apart and merged: the numbers are the same. What `save` writes is all
    that is needed to go on after `load`.
    """

    def __init__(self, total_utterances: int) -> None:
        if total_utterances < 1:
            raise CalibrationError("no utterances to calibrate on: give data that holds some")
        self._seen = np.zeros(total_utterances, np.bool_)
        self._tensors: dict[str, TensorStatistics] = {}

    @property
    def tensors(self) -> Mapping[str, TensorStatistics]:
        """The statistics by tensor name."""
        return self._tensors

    @property
    def total_utterances(self) -> int:
        """How many utterances the calibration set has."""
        return self._seen.size

    @property
    def utterances(self) -> int:
        """How many of them were added."""
        return int(self._seen.sum())

    @property
    def missing(self) -> list[int]:
        """The places in the set of those that were not."""
        places: list[int] = np.flatnonzero(~self._seen).tolist()
        return places

    def add_utterance(
        self, activations: Mapping[str, NDArray[np.float32]], place: int | None = None
    ) -> None:
        """Count the activations by tensor name of the utterance at `place`; None: the next one.

        Raises CalibrationError, naming the tensor, and counts nothing where one holds NaN, infinity
        or no values, where the names are not those of the first utterance, and after the last one.
        """
        if place is None:
            place = next(iter(self.missing), self.total_utterances)
        if place >= self.total_utterances:
            raise CalibrationError(
                f"more utterances than the {self.total_utterances} announced: "
                "calibrate anew on this data"
            )
        self._require_new(self._seen[place])
        _require_same_names(activations, self._tensors or activations)
        # All are checked before one is counted, so that a caller may leave this utterance out.
        extents = {name: _named_extent(name, values) for name, values in activations.items()}
        # Batches as even as can be: EMA_BATCHES of them, or one for each utterance of a small set.
        batch = place * EMA_BATCHES // self.total_utterances
        for name, values in activations.items():
            self._tensors.setdefault(name, TensorStatistics()).add(values, batch, extents[name])
        self._seen[place] = True

    def merge(self, other: ActivationStatistics) -> None:
        """Add what `other` saw of the same set; raises CalibrationError where both saw something.

        Raises it as well where the sets or the names of the tensors differ.
        """
        if other.total_utterances != self.total_utterances:
            raise CalibrationError(
                f"statistics of {other.total_utterances} utterances beside those of "
                f"{self.total_utterances}: calibrate with one data set throughout"
            )
        self._require_new((self._seen & other._seen).any())
        _require_same_names(other._tensors, self._tensors or other._tensors)
        for name, statistics in other._tensors.items():
            self._tensors.setdefault(name, TensorStatistics()).merge(statistics)
        self._seen |= other._seen

    def _require_new(self, was_seen: bool | np.bool_) -> None:
        if was_seen:
            raise CalibrationError("an utterance counted twice: calibrate anew on this data")

    def save(self, path: Path) -> None:
        """Write all of it to `path`, a .npz file whatever it is called."""
        arrays: dict[str, list[NDArray[np.generic]]] = {}
        for statistics in self._tensors.values():
            for key, array in statistics.to_arrays().items():
                arrays.setdefault(key, []).append(array)
        stacked: dict[str, Any] = {key: np.stack(rows) for key, rows in arrays.items()}
        stacked["format"] = np.array(FORMAT)
        stacked["names"] = np.array(list(self._tensors), np.str_)
        stacked["seen"] = self._seen
        # NumPy adds .npz to a name that lacks it, but not to an open file.
        with path.open("wb") as file:
            np.savez_compressed(file, **stacked)

    @classmethod
    def load(cls, path: Path) -> ActivationStatistics:
        """Return what `save` wrote; raises CalibrationError where the file is not that."""
        try:
            # NumPy leaves a file open that it opened and found truncated.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls._from_arrays(dict(arrays))
        except FileNotFoundError as error:
            raise CalibrationError(f"{path}: no such statistics; calibrate again") from error
        except UNREADABLE_ARCHIVE as error:
            raise CalibrationError(f"{path}: not statistics ({error}); {_MEND}") from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> ActivationStatistics:
        if str(arrays["format"]) != FORMAT:
            raise ValueError(f"in the format {arrays['format']}, not {FORMAT}")
        seen = np.asarray(arrays["seen"], np.bool_)
        loaded = cls(seen.size)
        loaded._seen[:] = seen
        rows = {key: arrays[key] for key in TensorStatistics().to_arrays()} if seen.any() else {}
        for index, name in enumerate(arrays["names"].tolist()):
            own = {key: stacked[index] for key, stacked in rows.items()}
            loaded._tensors[name] = TensorStatistics.from_arrays(own)
        return loaded


def _require_same_names(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    if different := sorted(found.keys() ^ expected.keys()):
        raise CalibrationError(
            f"{different[0]} is among the activations of some utterances only: "
            "calibrate with one model throughout"
        )


def _named_extent(name: str, values: NDArray[np.float32]) -> Extent:
    try:
        return extent_of(values)
    except CalibrationError as error:
        raise CalibrationError(f"{name}: {error}") from error
