from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.calibrators.balance import (
    Quantizer,
    balanced_extents,
    best_balance,
    divided,
    divisors_for,
)
from speechquant.calibrators.channels import ChannelRanges
from speechquant.calibrators.histogram import Extent
from speechquant.core.errors import CalibrationError
from speechquant.core.scales import Bits

CHANNELS, OUTPUTS = 32, 24


def ranges_from(rows: NDArray[np.float32]) -> ChannelRanges:
    return ChannelRanges(rows.min(axis=0), rows.max(axis=0), rows)


def normal_rows(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(400, CHANNELS)).astype(np.float32)


def weight(seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(CHANNELS, OUTPUTS)).astype(np.float32)


def in_float64(rows: NDArray[np.float32], values: NDArray[np.float32], extent: Extent) -> float:
    """The mean relative squared error of symmetric W8A8, written down once more in float64."""
    wide, matrix = rows.astype(np.float64), values.astype(np.float64)
    scale = max(-extent.minimum, extent.maximum) / 127
    steps = np.abs(matrix).max(axis=0) / 127
    found = (np.clip(np.rint(wide / scale), -127, 127) * scale) @ (np.rint(matrix / steps) * steps)
    expected = wide @ matrix
    return float((np.square(found - expected).sum(1) / np.square(expected).sum(1)).mean())


def test_divisors_are_powers_of_two_that_bring_every_channel_below_the_bound() -> None:
    peaks = np.array([1, 3, 8, 100], np.float32)
    assert divisors_for(peaks, 0.05).tolist() == [1, 1, 2, 32]
    assert divisors_for(peaks, 1.0).tolist() == [1, 1, 1, 1]


def test_channels_of_zeros_are_left_alone() -> None:
    assert divisors_for(np.zeros(3, np.float32), 0.5).tolist() == [1, 1, 1]


def test_the_error_is_that_of_a_product_in_integers() -> None:
    rows = normal_rows()
    found = best_balance(ranges_from(rows), [weight()], Quantizer(symmetric=True), may_keep=False)
    expected = in_float64(rows, weight(), Extent(float(rows.min()), float(rows.max())))
    assert found.error_before == pytest.approx(expected, rel=1e-3)


def test_large_channels_are_divided_and_the_error_falls() -> None:
    rows = normal_rows()
    rows[:, 3] *= 40
    found = best_balance(ranges_from(rows), [weight()], Quantizer(symmetric=True), may_keep=False)
    assert found.divisors[3] >= 4
    assert found.error < found.error_before / 4


def test_a_channel_too_large_to_be_divided_stays_in_float() -> None:
    rows = normal_rows()
    rows[:, 3] = 0.0
    rows[0, 3] = 30_000.0  # of one token, as where a sentence begins
    one = best_balance(ranges_from(rows), [weight()], Quantizer(), may_keep=False)
    kept = best_balance(ranges_from(rows), [weight()], Quantizer(), may_keep=True)
    assert kept.kept == (3,)
    assert kept.error < one.error / 10


def test_beside_weights_that_stay_as_they_are_channels_are_kept_but_not_divided() -> None:
    rows = normal_rows()
    rows[:, 3] *= 40
    given = ranges_from(rows), [weight()], Quantizer()
    divided_too = best_balance(*given, may_keep=False)
    alone = best_balance(*given, may_keep=False, may_divide=False)
    found = best_balance(*given, may_keep=True, may_divide=False)
    assert divided_too.divisors.max() > 1 and not alone.is_needed
    assert set(found.divisors.tolist()) == {1.0} and found.kept == (3,)
    assert found.error < alone.error / 2


def test_weights_that_stay_as_they_are_are_not_rounded() -> None:
    rows = np.rint(30 * normal_rows()).clip(-127, 127)
    rows[0, 0] = 127  # each value is a level, so that the weights alone can err
    given = ranges_from(rows), [weight()], Quantizer(symmetric=True)
    assert best_balance(*given, may_keep=False, may_divide=False).error < 1e-10
    assert best_balance(*given, may_keep=False).error > 1e-6


def test_even_channels_are_left_as_they_are() -> None:
    rows = np.sign(normal_rows()) * np.float32(0.7)
    found = best_balance(ranges_from(rows), [weight()], Quantizer(), may_keep=True)
    assert not found.is_needed


def test_products_that_share_an_activation_are_weighed_together() -> None:
    rows = normal_rows()
    rows[:, 3] *= 40
    parts = np.split(weight(), 3, axis=1)
    apart = best_balance(ranges_from(rows), parts, Quantizer(), may_keep=False)
    together = best_balance(ranges_from(rows), [weight()], Quantizer(), may_keep=False)
    assert apart.error == together.error


def test_an_asymmetric_scale_spends_its_levels_where_values_are() -> None:
    extent = Extent(-0.17, 25.33)
    row = Quantizer(Bits(), symmetric=False).scale_of("layer", extent)
    assert row.scale == pytest.approx(25.5 / 255)
    assert row.zero_point == 2
    assert Quantizer(Bits(), symmetric=True).scale_of("layer", extent).scale == pytest.approx(
        25.33 / 127
    )


def test_the_range_leaves_out_channels_that_stay_in_float() -> None:
    ranges = ranges_from(np.array([[-1, 0, 0], [0, 8, 900]], np.float32))
    divisors = np.array([1, 4, 1], np.float32)
    assert divided(ranges, divisors, (2,)) == (-1, 2)


def test_an_activation_of_zeros_has_no_scale() -> None:
    zeros = ranges_from(np.zeros((5, 2), np.float32))
    with pytest.raises(CalibrationError, match=r"only ever saw zeros.*--keep-float block"):
        balanced_extents({"x": zeros}, {"x": "block"}, {})
