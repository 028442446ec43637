"""A constant weight of a graph, as the steps hand it to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.scales import largest_level

Levels = NDArray[np.int8] | NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class ScaledLevels:
    """Levels of a weight together with the one scale that they were trained with."""

    levels: Levels
    scale: np.float32


Rounding = Levels | ScaledLevels

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
