"""What balancing remembers of an activation: the range of each channel, and a sample of its rows.

A row is what a product reads at once: all channels of one token, or what a convolution's window
covers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.histogram import Extent, extent_of
from speechquant.calibrators.statistics import UNREADABLE_ARCHIVE
from speechquant.core.errors import CalibrationError
from speechquant.core.files import new_file
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep

Floats = NDArray[np.float32]

FORMAT = "speechquant.channels/1"
SAMPLED_ROWS = 512  # of each activation, over all clips
PEAK_ROWS = 64  # beside those: the rows that hold the largest values
# Of the windows of one activation: 64 MiB. A positional convolution's has 98,304 in a base model.
MOST_WINDOW_VALUES = 1 << 24
_SEED = 0


@dataclass(frozen=True)
class Window:
    """What a convolution reads at once of [batch, channels, time]."""

    steps: int
    stride: int

    def rows_of(self, values: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Return so many random windows with all their channels, or all where they are fewer."""
        clip = values[0]
        if clip.shape[1] < self.steps:
            clip = np.pad(clip, ((0, 0), (0, self.steps - clip.shape[1])))
        windows = np.lib.stride_tricks.sliding_window_view(clip, self.steps, axis=1)
        windows = windows[:, :: self.stride]
        drawn = rng.permutation(windows.shape[1])[:count]
        rows: Floats = windows[:, drawn].transpose(1, 0, 2).reshape(len(drawn), -1)
        return rows


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """The least and the largest value of each channel, and rows that stand for all of them."""

    lowest: Floats
    highest: Floats
    rows: Floats

    @property
    def extent(self) -> Extent:
        """The range of the whole activation."""
        return Extent(float(self.lowest.min()), float(self.highest.max()))

    @property
    def amax(self) -> Floats:
        """The largest magnitude of each channel."""
        magnitudes: Floats = np.maximum(-self.lowest, self.highest)
        return magnitudes

    def union(self, other: ChannelRanges) -> ChannelRanges:
        """Return what is known of both; the rows follow one another."""
        return ChannelRanges(
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            np.concatenate([self.rows, other.rows]),
        )


def ranges_of(values: Floats, axis: int, rows: int, peaks: int, seed: int) -> ChannelRanges:
    """Return the ranges of the channels along `axis`, so many random rows and so many high ones.

    Raises CalibrationError where a value is not finite.
    """
    extent_of(values)
    table = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    drawn = np.random.default_rng([_SEED, seed]).permutation(len(table))[:rows]
    magnitudes = np.maximum(table.max(axis=1), -table.min(axis=1))
    highest = np.argsort(magnitudes)[len(table) - min(peaks, len(table)) :]
    return ChannelRanges(
        table.min(axis=0), table.max(axis=0), table[np.concatenate([drawn, highest])]
    )


def ranges_of_windows(
    values: Floats, window: Window, rows: int, seed: int, clips: int
) -> ChannelRanges:
    """Return the ranges of the channels, and so many random windows.

    They are fewer where those of so many clips would take too much memory. Raises CalibrationError
    where a value is not finite.
    """
    extent_of(values)
    most = -(-MOST_WINDOW_VALUES // (values.shape[1] * window.steps * clips))
    drawn = window.rows_of(values, min(rows, most), np.random.default_rng([_SEED, seed]))
    return ChannelRanges(values.min(axis=(0, 2)), values.max(axis=(0, 2)), drawn)


def collect_ranges(
    activations_of: Callable[[LabelledClip], Mapping[str, NDArray[Any]]],
    axes: Mapping[str, int],
    clips: Sequence[LabelledClip],
    saved: Path | None = None,
    *,
    windows: Mapping[str, Window] | None = None,
    on_step: OnStep | None = None,
) -> dict[str, ChannelRanges]:
    """Return the ranges of every activation of `axes`, which says where its channels lie.

    Rows of the activations of `windows` are what a convolution reads at once.

    They are kept in the file `saved` at the end and taken from there if it exists; it must belong
    to the same model and clips. Raises CalibrationError.
    """
    if not clips:
        raise CalibrationError("no utterances to calibrate on: give data that holds some")
    if saved is not None and saved.is_file():
        return _load(saved)
    rows, peaks = -(-SAMPLED_ROWS // len(clips)), -(-PEAK_ROWS // len(clips))
    found: dict[str, ChannelRanges] = {}
    for index, clip in enumerate(clips):
        activations = activations_of(clip)
        for name, axis in axes.items():
            try:
                values, window = activations[name], (windows or {}).get(name)
                ranges = (
                    ranges_of(values, axis, rows, peaks, index)
                    if window is None
                    else ranges_of_windows(values, window, rows, index, len(clips))
                )
            except CalibrationError as error:
                raise CalibrationError(f"{name}: {error}") from error
            found[name] = found[name].union(ranges) if name in found else ranges
        if on_step is not None:
            on_step(index + 1, len(clips))
    if saved is not None:
        _save(found, saved)
    return found


def _save(found: Mapping[str, ChannelRanges], saved: Path) -> None:
    arrays: dict[str, Any] = {"format": np.array(FORMAT), "names": np.array(list(found), np.str_)}
    for index, ranges in enumerate(found.values()):
        arrays[f"lowest_{index}"], arrays[f"highest_{index}"] = ranges.lowest, ranges.highest
        arrays[f"rows_{index}"] = ranges.rows
    with new_file(saved, force=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _load(saved: Path) -> dict[str, ChannelRanges]:
    try:
        with saved.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["format"]) != FORMAT:
                raise ValueError(f"in the format {arrays['format']}, not {FORMAT}")
            return {
                name: ChannelRanges(*(arrays[f"{part}_{index}"] for part in _PARTS))
                for index, name in enumerate(arrays["names"].tolist())
            }
    except UNREADABLE_ARCHIVE as error:
        raise CalibrationError(
            f"{saved}: not the ranges of channels ({error}); delete it and run again"
        ) from error


_PARTS = ("lowest", "highest", "rows")
