"""Weights of a bundle that were trained as integers, and so are not rounded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechquant.core.weights import ScaledLevels, read_trained_weights

_TRAINED_BITS = 8


def trained_levels(folder: Path, bits: int) -> dict[str, ScaledLevels]:
    """Return the integers and scales of a bundle's trained weights.

    There are none for fewer bits than they have, nor for levels that no integers multiply; then
    weights are rounded as if they had not been trained.
    """
    if bits < _TRAINED_BITS:
        return {}
    return {
        name: ScaledLevels(weight.integers.astype(np.int8), weight.scale)
        for name, weight in read_trained_weights(folder).items()
        if weight.is_uniform
    }
