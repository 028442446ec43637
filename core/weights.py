"""Weights as the steps hand them to each other: those of a graph, and those trained as levels."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import CheckpointError
from speechquant.core.scales import largest_level

Levels = NDArray[np.int8] | NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class ScaledLevels:
    """Levels of a weight together with the one scale that they were trained with."""

    levels: Levels
    scale: np.float32


Rounding = Levels | ScaledLevels

TRAINED_WEIGHTS_FILE = "trained_weights.npz"
_LEVELS, _CODES, _SCALE = "levels", ".codes", ".scale"
_SMALLEST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class ConstantWeight:
    """A weight to be quantized: its values, the operator that uses it and the tensor that feeds it.

    The output channels lie along `channel_axis`; `attributes` are the operator's.
    """

    name: str
    layer: str
    activation: str
    operator: str
    channel_axis: int
    attributes: Mapping[str, Any]
    values: NDArray[np.float32]


def channel_scales(
    values: NDArray[np.float32], axis: int, bits: int, *, shared: bool = False
) -> NDArray[np.float32]:
    """Return s = max|w| / Q of each channel along `axis`; `shared`, the largest for all of them."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others, initial=0)
    if shared:
        largest = np.full_like(largest, largest.max(initial=0))
    scales: NDArray[np.float32] = largest / np.float32(largest_level(bits))
    # Of a channel of zeros any scale gives zeros, but 0 would divide by it and TensorRT refuses it.
    return np.where(scales < _SMALLEST_SCALE, np.float32(1), scales)


def along_channels(scales: NDArray[Any], axis: int, dimensions: int) -> NDArray[Any]:
    """Return one number a channel in a shape that multiplies a weight of so many dimensions."""
    shape = [1] * dimensions
    shape[axis] = -1
    return scales.reshape(shape)


def read_levels(path: Path | None) -> dict[str, Levels]:
    """Return the levels that another rounding chose, by weight; none without a file."""
    if path is None or not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


@dataclass(frozen=True, eq=False)
class TrainedWeight:
    """Codes [a weight's shape], the whole numbers that they stand for, and their scale."""

    codes: NDArray[np.uint8]
    levels: NDArray[np.int16]
    scale: np.float32

    @property
    def is_uniform(self) -> bool:
        """Whether the levels are neighbours, so that integers of a byte multiply them."""
        return bool((np.diff(self.levels) == 1).all())

    @property
    def integers(self) -> NDArray[np.int16]:
        """The weight in units of its scale."""
        return self.levels[self.codes]

    @property
    def values(self) -> NDArray[np.float32]:
        """The weight as it was trained."""
        rounded: NDArray[np.float32] = self.integers.astype(np.float32) * self.scale
        return rounded

    @property
    def transposed(self) -> TrainedWeight:
        """The weight of a product whose other operand stands on its left."""
        return TrainedWeight(np.ascontiguousarray(self.codes.T), self.levels, self.scale)

    def without_rows(self, rows: NDArray[np.intp]) -> TrainedWeight:
        """Return the weight with zeros in some of its rows."""
        codes = self.codes.copy()
        codes[rows] = np.flatnonzero(self.levels == 0)
        return TrainedWeight(codes, self.levels, self.scale)


def write_trained_weights(weights: Mapping[str, TrainedWeight], path: Path) -> None:
    """Write weights of one table of levels by name; the caller makes the write atomic."""
    arrays: dict[str, Any] = {
        _LEVELS: next(weight.levels for weight in weights.values()),
        **{f"{name}{_CODES}": weight.codes for name, weight in weights.items()},
        **{f"{name}{_SCALE}": weight.scale for name, weight in weights.items()},
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_trained_weights(folder: Path) -> dict[str, TrainedWeight]:
    """Return the trained weights of a checkpoint or a bundle, none where it has none.

    Raises CheckpointError for a file that is none of this version's.
    """
    path = folder / TRAINED_WEIGHTS_FILE
    if not path.is_file():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return _weights_in(dict(stored))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not as this version writes it ({error}); copy the folder again"
        ) from error


def _weights_in(arrays: Mapping[str, NDArray[Any]]) -> dict[str, TrainedWeight]:
    levels = arrays[_LEVELS]
    if levels.dtype != np.int16 or levels.ndim != 1:
        raise ValueError(f"levels are {levels.dtype}{list(levels.shape)}")
    found = {}
    for key, codes in arrays.items():
        if not key.endswith(_CODES):
            continue
        name = key.removesuffix(_CODES)
        scale = arrays[f"{name}{_SCALE}"]
        if codes.dtype != np.uint8 or codes.max(initial=0) >= len(levels):
            raise ValueError(f"the codes of {name} are none of the {len(levels)} levels")
        if scale.shape != () or not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"the scale of {name} is {scale}")
        found[name] = TrainedWeight(codes, levels, np.float32(scale))
    return found
