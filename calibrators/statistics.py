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

FORMAT = "speechquant.statistics/1"
# Wagner et al.: minimum and maximum are averaged over this many batches, then they stand.
EMA_BATCHES = 16
EMA_MOMENTUM = 0.9

# What NumPy raises for an .npz file, by the kind of damage.
UNREADABLE_ARCHIVE = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile
)  # fmt: skip
_MEND = "delete it and calibrate again"


class TensorStatistics:
    """One activation: the histogram, and the extent as a moving average over batches."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self._averaged: Extent | None = None
        self._batch: Extent | None = None
        self._batches = 0

    @property
    def averaged_extent(self) -> Extent | None:
        """The moving average of the batches' minima and maxima, None before the first batch."""
        return self._averaged

    def add(self, values: NDArray[np.float32], extent: Extent | None = None) -> None:
        """Count `values`; `extent` is theirs where the caller has it already."""
        extent = extent_of(values) if extent is None else extent
        self.histogram.add(values, extent)
        self._batch = extent.union(self._batch)

    def end_batch(self) -> None:
        """Let the values since the last batch count as one; those after EMA_BATCHES do not."""
        batch, self._batch = self._batch, None
        if batch is None or self._batches == EMA_BATCHES:
            return
        self._batches += 1
        old = batch if self._averaged is None else self._averaged
        self._averaged = batch if old is batch else Extent(*map(_average, old, batch))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the state as arrays; an extent of NaN stands for None."""
        return {
            **self.histogram.to_arrays(),
            "averaged": array_from_extent(self._averaged),
            "batch": array_from_extent(self._batch),
            "batches": np.array(self._batches, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> TensorStatistics:
        """Return the statistics of `to_arrays`."""
        statistics = cls()
        statistics.histogram = Histogram.from_arrays(arrays)
        statistics._averaged = extent_from_array(arrays["averaged"])
        statistics._batch = extent_from_array(arrays["batch"])
        statistics._batches = int(arrays["batches"].item())
        return statistics


def _average(old: float, new: float) -> float:
    return EMA_MOMENTUM * old + (1 - EMA_MOMENTUM) * new


class ActivationStatistics:
    """Every activation of one model over a calibration set of `total_utterances`, one at a time.

    The set is cut into at most EMA_BATCHES batches. What `save` writes is all that is needed to go
    on after `load` and to come to the same numbers as without the interruption.
    """

    def __init__(self, total_utterances: int) -> None:
        if total_utterances < 1:
            raise CalibrationError("no utterances to calibrate on: give data that holds some")
        self._total = total_utterances
        self._seen = 0
        self._tensors: dict[str, TensorStatistics] = {}

    @property
    def tensors(self) -> Mapping[str, TensorStatistics]:
        """The statistics by tensor name."""
        return self._tensors

    @property
    def total_utterances(self) -> int:
        """How many utterances the calibration set has."""
        return self._total

    @property
    def utterances(self) -> int:
        """How many of them were added."""
        return self._seen

    def add_utterance(self, activations: Mapping[str, NDArray[np.float32]]) -> None:
        """Count one utterance's activations by tensor name.

        Raises CalibrationError, naming the tensor, and counts nothing where one holds NaN, infinity
        or no values, where the names are not those of the first utterance, and after the last one.
        """
        if self._seen == self._total:
            raise CalibrationError(
                f"more utterances than the {self._total} announced: calibrate anew on this data"
            )
        _require_same_names(activations, self._tensors or activations)
        # All are checked before one is counted, so that a caller may leave this utterance out.
        extents = {name: _named_extent(name, values) for name, values in activations.items()}
        for name, values in activations.items():
            self._tensors.setdefault(name, TensorStatistics()).add(values, extents[name])
        batches_before = self._seen * EMA_BATCHES // self._total
        self._seen += 1
        # Batches as even as can be: EMA_BATCHES of them, or one for each utterance of a small set.
        if self._seen * EMA_BATCHES // self._total > batches_before:
            for statistics in self._tensors.values():
                statistics.end_batch()

    def save(self, path: Path) -> None:
        """Write all of it to `path`, a .npz file whatever it is called."""
        arrays: dict[str, list[NDArray[np.generic]]] = {}
        for statistics in self._tensors.values():
            for key, array in statistics.to_arrays().items():
                arrays.setdefault(key, []).append(array)
        stacked: dict[str, Any] = {key: np.stack(rows) for key, rows in arrays.items()}
        stacked["format"] = np.array(FORMAT)
        stacked["names"] = np.array(list(self._tensors), np.str_)
        stacked["total"] = np.array(self._total)
        stacked["seen"] = np.array(self._seen)
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
        loaded = cls(int(arrays["total"].item()))
        loaded._seen = int(arrays["seen"].item())
        rows = {key: arrays[key] for key in TensorStatistics().to_arrays()} if loaded._seen else {}
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
