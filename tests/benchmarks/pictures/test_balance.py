from __future__ import annotations

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from speechquant.benchmarks.pictures.balance import ActivationErrors, figure_of_balance
from speechquant.benchmarks.pictures.style import BLUE, VERMILION
from speechquant.core.errors import OptionError


def test_bars_in_order_and_layers_named_where_they_begin() -> None:
    errors = [
        ActivationErrors("encoder.block.0", 0.5, 0.01),
        ActivationErrors("encoder.block.0", 0.02, 0.0),
        ActivationErrors("cross", 0.1, 0.1),
    ]
    (axes,) = figure_of_balance("nano", errors).axes
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    heights = {
        colour: [bar.get_height() for bar in bars if to_hex(bar.get_facecolor()) == colour.lower()]
        for colour in (VERMILION, BLUE)
    }
    assert heights == {VERMILION: [0.5, 0.02, 0.1], BLUE: [0.01, 1e-6, 0.1]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["encoder.block.0", "cross"]
    assert axes.get_xticks().tolist() == [0, 2]
    assert axes.get_yscale() == "log"


def test_nothing_to_draw() -> None:
    with pytest.raises(OptionError, match="no activations to draw"):
        figure_of_balance("nano", [])
