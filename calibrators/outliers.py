"""Outliers in what modules compute, as the gated-attention paper measures them; NumPy only.

Kurtosis and infinity norm are those of the code that the paper builds on (Bondarenko et al.,
Quantizable Transformers): of each clip's whole output, averaged over clips. An outlier is a value
more than six standard deviations from the mean of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import CalibrationError

OUTLIER_DEVIATIONS = 6.0
_KURTOSIS_FLOOR = 1e-6


def kurtosis(values: NDArray[Any]) -> float:
    """Return the fourth standardised moment, 3 for a normal distribution."""
    values = np.asarray(values, np.float64)
    centred = values - values.mean()
    fourth = float(np.mean(np.square(np.square(centred))))
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return fourth / (deviation**4 + _KURTOSIS_FLOOR)


@dataclass(frozen=True)
class ModuleOutliers:
    """One module over all clips; `outliers` counts by hidden dimension."""

    module: str
    kurtosis: float
    infinity_norm: float
    values: int
    outliers: tuple[int, ...]

    @property
    def outlier_share(self) -> float:
        """The share of all values that are outliers."""
        return sum(self.outliers) / self.values

    def top_dimensions(self, count: int) -> list[tuple[int, float]]:
        """Return the dimensions with the most outliers and their shares of all outliers."""
        total = sum(self.outliers)
        order = np.argsort(self.outliers, kind="stable")[::-1][:count].tolist()
        return [(index, self.outliers[index] / total) for index in order if self.outliers[index]]


class OutlierStatistics:
    """Adds up clip by clip; what a clip gives is an array [..., dimensions] by module."""

    def __init__(self) -> None:
        self._kurtoses: dict[str, list[float]] = {}
        self._norms: dict[str, list[float]] = {}
        self._values: dict[str, int] = {}
        self._outliers: dict[str, NDArray[np.int64]] = {}

    def add(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Count one clip; raises CalibrationError for a value that is not finite."""
        for module, output in outputs.items():
            values = np.asarray(output, np.float64).reshape(-1, output.shape[-1])
            if not np.isfinite(values).all():
                raise CalibrationError(f"{module}: gives values that are not finite")
            limit = OUTLIER_DEVIATIONS * values.std(ddof=1) if values.size > 1 else np.inf
            far = np.count_nonzero(np.abs(values - values.mean()) > limit, axis=0)
            self._kurtoses.setdefault(module, []).append(kurtosis(values))
            self._norms.setdefault(module, []).append(float(np.abs(values).max()))
            self._values[module] = self._values.get(module, 0) + values.size
            self._outliers[module] = self._outliers.get(module, np.zeros_like(far)) + far

    def rows(self) -> list[ModuleOutliers]:
        """Return what was seen of each module, in the order in which they came."""
        return [
            ModuleOutliers(
                module,
                float(np.mean(self._kurtoses[module])),
                float(np.mean(self._norms[module])),
                self._values[module],
                tuple(self._outliers[module].tolist()),
            )
            for module in self._kurtoses
        ]
