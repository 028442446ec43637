"""Weights as integers: symmetric, one scale per output channel, the full range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError, OptionError
from speechquant.core.scales import Bits, largest_level
from speechquant.core.weights import (
    Levels,
    Rounding,
    ScaledLevels,
    along_channels,
    channel_scales,
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The levels of a weight and the scale of each of its channels, which lie along `axis`."""

    levels: Levels
    scales: Floats
    axis: int

    @property
    def dequantized(self) -> Floats:
        """The weight as the graph sees it, level times scale in float32."""
        values: Floats = self.levels.astype(np.float32) * along_channels(
            self.scales, self.axis, self.levels.ndim
        )
        return values


def quantize_weight(
    weight: NDArray[Any],
    axis: int,
    bits: int,
    *,
    levels: Rounding | None = None,
    shared_scale: bool = False,
    name: str = "weight",
) -> QuantizedWeight:
    """Return `weight` with s = max|w| / Q and q = round_half_even(w / s), in float32.

    With `shared_scale` all channels have the largest one's scale. `levels` takes the place of
    rounding to nearest, at the same scales or at their own. The levels are int8 up to 8 bits and
    int16 above. Raises BundleError, naming the weight, where it is not finite, and OptionError for
    levels that are not of this weight and for bits outside 2..16.
    """
    largest = largest_level(Bits(weights=bits).weights)
    values = np.asarray(weight, np.float32)
    if not np.isfinite(values).all():
        raise BundleError(
            f"{name}: holds values that are not finite, so it has no scale; "
            "export the model again from a sound checkpoint"
        )
    scales = channel_scales(values, axis, bits, shared=shared_scale)
    if levels is None:
        # No clamp is needed: the largest magnitude is Q steps by the choice of the scale.
        nearest = np.rint(values / along_channels(scales, axis, values.ndim))
        return QuantizedWeight(_stored(nearest, bits), scales, axis)
    if isinstance(levels, ScaledLevels):
        scales = np.full_like(scales, levels.scale)
        levels = levels.levels
    _check_levels(levels, values.shape, largest, name)
    return QuantizedWeight(_stored(levels, bits), scales, axis)


def _stored(levels: NDArray[Any], bits: int) -> Levels:
    return levels.astype(np.int8) if bits <= 8 else levels.astype(np.int16)


def _check_levels(levels: NDArray[Any], shape: tuple[int, ...], largest: int, name: str) -> None:
    if levels.shape != shape or levels.dtype.kind != "i":
        raise OptionError(
            f"{name}: was given rounded levels {levels.dtype}{list(levels.shape)}, the weight is "
            f"{list(shape)}; give integers of its shape"
        )
    if levels.size and max(-int(levels.min()), int(levels.max())) > largest:
        raise OptionError(
            f"{name}: was given rounded levels from {levels.min()} to {levels.max()}; "
            f"keep them within -{largest} to {largest}, or give more bits"
        )
