from __future__ import annotations

import pytest

from speechquant.benchmarks.pictures.words_and_speed import Point, figure_of_words_and_speed
from speechquant.core.errors import OptionError


def test_a_panel_for_each_checkpoint_with_its_points() -> None:
    points = [
        Point("nano", "ours", 0.02, 0.05),
        Point("nano", "theirs", 0.04, 0.0501),
        Point("micro", "ours", 0.1, 0.03),
    ]
    figure = figure_of_words_and_speed(points)
    first, second = figure.axes
    drawn = [
        (*line.get_xdata(), *line.get_ydata()) for line in first.lines if len(line.get_xdata())
    ]  # type: ignore[misc, arg-type]
    assert drawn == [(0.02, 5.0), (0.04, pytest.approx(5.01))]
    assert (first.get_title(), second.get_title()) == ("nano", "micro")
    # Noise of a hundredth of a point does not fill the picture.
    low, high = first.get_ylim()
    assert high - low == pytest.approx(1.0)
    assert first.get_xlim()[0] == 0
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "theirs"]


def test_nothing_to_draw() -> None:
    with pytest.raises(OptionError, match="no candidates to draw"):
        figure_of_words_and_speed([])
