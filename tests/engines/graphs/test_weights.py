from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.core.errors import BundleError, OptionError
from speechquant.engines.graphs.weights import quantize_weight


def test_levels_and_scales_worked_by_hand() -> None:
    # A scale of exactly 1, so that halves are halves: they go to the even neighbour.
    weight = np.array([[127, 62.5, 63.5, -0.5, -1.5], [0.25, -0.5, 0.125, 0, 0.002]], np.float32)
    quantized = quantize_weight(weight, 0, 8)
    np.testing.assert_array_equal(quantized.scales, np.float32([1, 0.5 / np.float32(127)]))
    # 0.25 is 63.5 steps, 0.125 is 31.75 and 0.002 is 0.508.
    np.testing.assert_array_equal(quantized.levels, [[127, 62, 64, 0, -2], [64, -127, 32, 0, 1]])
    np.testing.assert_array_equal(quantized.dequantized[0], [127, 62, 64, 0, -2])


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 4), 0), ((6, 5), 1)])
def test_the_same_as_a_plain_loop(shape: tuple[int, ...], axis: int, bits: int) -> None:
    weight = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
    quantized = quantize_weight(weight, axis, bits)
    largest = 2 ** (bits - 1) - 1
    assert quantized.levels.dtype == (np.int8 if bits <= 8 else np.int16)
    for channel in range(shape[axis]):
        values = np.take(weight, channel, axis).ravel()
        levels = np.take(quantized.levels, channel, axis).ravel()
        scale = max(abs(value) for value in values) / np.float32(largest)
        assert quantized.scales[channel] == scale
        # Python's round goes to even too.
        assert [round(value / scale) for value in values] == levels.tolist()
        assert max(abs(int(level)) for level in levels) == largest
        dequantized = np.take(quantized.dequantized, channel, axis).ravel()
        assert np.abs(dequantized - values).max() <= scale / 2 * 1.00001


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-37])
def test_a_channel_of_next_to_nothing_has_a_usable_scale(size: float) -> None:
    weight = np.array([[size, -size], [1, 2]], np.float32)
    quantized = quantize_weight(weight, 0, 8)
    assert (quantized.scales > 1e-38).all()
    np.testing.assert_allclose(quantized.dequantized, weight, atol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(BundleError, match=r"head\.weight: holds values that are not finite"):
        quantize_weight(np.array([[1, value]]), 0, 8, name="head.weight")


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_have_bounds(bits: int) -> None:
    with pytest.raises(OptionError, match="give 2 to 16 bits"):
        quantize_weight(np.ones((2, 2)), 0, bits)


def test_given_levels_take_the_place_of_rounding() -> None:
    weight = np.array([[7.0, 1.4], [3.5, 1.4]], np.float32)
    levels = np.array([[7, 2], [7, 2]], np.int8)
    quantized = quantize_weight(weight, 0, 4, levels=levels)
    np.testing.assert_array_equal(quantized.scales, [1, 0.5])
    np.testing.assert_array_equal(quantized.dequantized, [[7, 2], [3.5, 1]])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.zeros((3, 2), np.int8), r"w: was given rounded levels int8\[3, 2\]"),
        (np.zeros((2, 2), np.float32), "give integers of its shape"),
        (np.array([[0, 8], [0, 0]]), "from 0 to 8; keep them within -7 to 7"),
        (np.array([[0, 0], [-128, 0]], np.int8), "from -128 to 0"),
    ],
)
def test_levels_of_another_weight_are_refused(levels: NDArray[Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quantize_weight(np.ones((2, 2)), 0, 4, levels=levels, name="w")
