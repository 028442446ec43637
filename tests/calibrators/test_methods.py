from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechquant.calibrators.methods import (
    BALANCED,
    EMA,
    FROM_STATISTICS,
    LAYER_ADAPTIVE,
    METHODS,
    MethodOptions,
    averaged_extent,
    layer_adaptive_table,
    require_live,
    table_from_statistics,
)
from speechquant.calibrators.statistics import ActivationStatistics, TensorStatistics
from speechquant.core.errors import CalibrationError, OptionError
from speechquant.core.scales import Bits, Scale, ScaleTable

LAYERS = {"x": "conv.0", "y": "block.0"}


def statistics_of(*utterances: dict[str, list[float]]) -> ActivationStatistics:
    statistics = ActivationStatistics(len(utterances))
    for utterance in utterances:
        statistics.add_utterance(
            {name: np.array(values, np.float32) for name, values in utterance.items()}
        )
    return statistics


@pytest.fixture
def seen() -> ActivationStatistics:
    """x is averaged to -1.25 .. 1.9; y is never below zero."""
    return statistics_of(
        {"x": [-1.0, 0.5, 2.0], "y": [1.0, 3.0]}, {"x": [-3.5, 1.0], "y": [2.0, 4.0]}
    )


def test_ema_symmetric_by_hand(seen: ActivationStatistics) -> None:
    table = table_from_statistics(seen, LAYERS, "model", MethodOptions("ema"))
    # -1 * 0.9 - 3.5 * 0.1 = -1.25 and 2 * 0.9 + 1 * 0.1 = 1.9; 3 * 0.9 + 4 * 0.1 = 3.1
    x, y = table.tensors["x"], table.tensors["y"]
    assert x.amax == pytest.approx(1.9, rel=1e-7)
    assert x.scale == pytest.approx(1.9 / 127, rel=1e-7)
    assert y.scale == pytest.approx(3.1 / 127, rel=1e-7)
    assert (x.zero_point, y.zero_point) == (0, 0)
    assert (x.layer, y.layer) == ("conv.0", "block.0")
    assert (table.method, table.model_sha256, table.symmetric) == ("ema", "model", True)
    assert (table.percentile, table.clipped_layers, table.float_layers) == (None, (), ())


def test_ema_asymmetric_by_hand(seen: ActivationStatistics) -> None:
    options = MethodOptions("ema", Bits(8, 4), symmetric=False)
    table = table_from_statistics(seen, LAYERS, "model", options)
    x, y = table.tensors["x"], table.tensors["y"]
    # 15 steps over 3.15; 1.25 / 0.21 = 5.95. y's range begins at 0.
    assert x.scale == pytest.approx(0.21, rel=1e-7)
    assert x.zero_point == 6
    assert y.scale == pytest.approx(3.1 / 15, rel=1e-7)
    assert y.zero_point == 0
    assert not table.symmetric


def test_a_range_below_zero_ends_at_zero() -> None:
    seen = statistics_of({"x": [-6.0, -2.0], "y": [1.0, 1.0]})
    assert averaged_extent(seen.tensors["x"]) == (-6.0, 0.0)
    asymmetric = MethodOptions("ema", Bits(8, 2), symmetric=False)
    row = table_from_statistics(seen, LAYERS, "model", asymmetric).tensors["x"]
    assert (row.scale, row.zero_point) == (2.0, 3)
    symmetric = MethodOptions("ema", Bits(8, 2))
    assert table_from_statistics(seen, LAYERS, "model", symmetric).tensors["x"].scale == 6.0


def test_max_takes_the_largest_of_all(seen: ActivationStatistics) -> None:
    rows = table_from_statistics(seen, LAYERS, "model", MethodOptions("max")).tensors
    assert (rows["x"].amax, rows["y"].amax) == (3.5, 4.0)
    assert rows["x"].scale == 3.5 / 127


@pytest.mark.parametrize("method", FROM_STATISTICS)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_every_method_gives_scales(method: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    seen = statistics_of({name: rng.standard_normal(5000).tolist() for name in LAYERS})
    largest = {name: seen.tensors[name].histogram.amax for name in LAYERS}
    options = MethodOptions(method, Bits(bits, bits))
    for name, row in table_from_statistics(seen, LAYERS, "model", options).tensors.items():
        assert 0 < row.amax <= largest[name] * (1 + 1 / 2048)
        assert row.scale == pytest.approx(row.amax / (2 ** (bits - 1) - 1))


@pytest.mark.parametrize("method", FROM_STATISTICS)
def test_a_tensor_of_zeros_is_named(method: str) -> None:
    seen = statistics_of({"x": [0.0, -0.0], "y": [1.0]})
    options = MethodOptions(method)
    message = r"x: only ever saw zeros .* or leave the layer in float with --keep-float conv\.0"
    with pytest.raises(CalibrationError, match=message):
        table_from_statistics(seen, LAYERS, "model", options)
    kept = {"y": "block.0"}
    require_live(seen, kept)
    assert set(table_from_statistics(seen, kept, "model", options).tensors) == {"y"}


def test_nothing_seen_has_no_extent() -> None:
    with pytest.raises(CalibrationError, match="no batch of calibration data"):
        averaged_extent(TensorStatistics())


def test_options_that_make_no_sense() -> None:
    with pytest.raises(
        OptionError, match="no method 'magic'; choose balanced, stablequant, ema, max"
    ):
        MethodOptions("magic")
    for percentile in (0.0, -1.0, 100.5, float("nan")):
        with pytest.raises(OptionError, match="give more than 0 and at most 100"):
            MethodOptions("percentile", percentile=percentile)
    for method in METHODS:
        options = MethodOptions(method)
        if method in (BALANCED, EMA):
            assert not replace(options, symmetric=False).symmetric
            continue
        with pytest.raises(OptionError, match=f"{method} has no asymmetric form"):
            replace(options, symmetric=False)


@pytest.mark.parametrize("method", LAYER_ADAPTIVE)
def test_with_s_and_p_the_tail_of_clipped_layers_is_cut_off_first(method: str) -> None:
    body = np.random.default_rng(0).laplace(size=99_800).astype(np.float32)
    tail = np.full(200, 40.0, np.float32)
    statistics = ActivationStatistics(1)
    whole = np.concatenate([body, tail])
    statistics.add_utterance({"x": whole, "y": whole, "body": body})
    rows = {"x": Scale("conv.0", 1.0, 127.0), "y": Scale("block.0", 1.0, 127.0)}
    choice = ScaleTable(
        "model", "stablequant", Bits(), rows, percentile=0.2, clipped_layers=("conv.0",)
    )
    table = layer_adaptive_table(statistics, choice, method)
    assert (table.method, table.percentile, table.clipped_layers) == (method, 0.2, ("conv.0",))
    plain = table_from_statistics(
        statistics,
        {"y": "block.0", "body": "conv.0"},
        "model",
        MethodOptions(method, percentile=100.0),
    )
    assert table.tensors["y"] == plain.tensors["y"]
    # Without its tail x is the body, in bins four times as wide.
    width = 64 / 2048
    assert table.tensors["x"].amax < 20
    assert table.tensors["x"].amax == pytest.approx(plain.tensors["body"].amax, abs=30 * width)
    if method == "percentile":
        assert table.tensors["x"].amax == pytest.approx(np.abs(body).max(), abs=width)
        assert table.tensors["y"].amax == 40.0
