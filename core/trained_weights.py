"""Weights trained as levels: one-byte codes, a table of levels and a scale for each weight."""

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

TRAINED_WEIGHTS_FILE = "trained_weights.npz"
_LEVELS, _CODES, _SCALE = "levels", ".codes", ".scale"


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
