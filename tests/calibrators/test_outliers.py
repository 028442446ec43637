from __future__ import annotations

import numpy as np
import pytest

from speechquant.calibrators.outliers import OutlierStatistics, kurtosis
from speechquant.core.errors import CalibrationError


def test_kurtosis_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    assert kurtosis(rng.normal(5.0, 2.0, 400_000)) == pytest.approx(3.0, abs=0.05)
    assert kurtosis(rng.uniform(-1, 1, 400_000)) == pytest.approx(1.8, abs=0.02)
    assert kurtosis(rng.laplace(size=400_000)) == pytest.approx(6.0, abs=0.3)
    assert kurtosis(np.zeros(10)) == 0.0


def test_as_the_code_it_follows() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).standard_t(3, (50, 20))
    x = torch.from_numpy(values.reshape(1, -1))
    # Bondarenko et al.: the deviation is the unbiased one, and a floor keeps zeros apart.
    fourth = ((x - x.mean(dim=1, keepdim=True)) ** 4.0).mean(dim=1)
    assert kurtosis(values) == pytest.approx(
        float(fourth / (x.std(dim=1) ** 4.0 + 1e-6)), rel=1e-12
    )


def test_counts_by_dimension_and_averages_over_clips() -> None:
    statistics = OutlierStatistics()
    first = np.zeros((1, 500, 4), np.float32)
    first[0, :3, 1] = 50.0
    first[0, 7, 2] = -60.0
    second = np.zeros((1, 300, 4), np.float32)
    second[0, 5, 2] = 10.0
    statistics.add({"a": first, "b": np.ones((1, 500, 2))})
    statistics.add({"a": second, "b": np.ones((1, 300, 2))})
    a, b = statistics.rows()
    assert (a.module, a.values, a.outliers) == ("a", 3200, (0, 3, 2, 0))
    assert a.infinity_norm == pytest.approx((60 + 10) / 2)
    assert a.kurtosis == pytest.approx((kurtosis(first) + kurtosis(second)) / 2)
    assert a.outlier_share == 5 / 3200
    assert a.top_dimensions(10) == [(1, 0.6), (2, 0.4)]
    assert (b.outliers, b.outlier_share, b.top_dimensions(10)) == ((0, 0), 0.0, [])


def test_values_that_are_not_finite() -> None:
    with pytest.raises(CalibrationError, match="a: gives values that are not finite"):
        OutlierStatistics().add({"a": np.array([[1.0, np.nan]])})
