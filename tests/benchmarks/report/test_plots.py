from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from reports import report

from speechquant.benchmarks.report import plots
from speechquant.benchmarks.report import row_plots as rows
from speechquant.benchmarks.report.figures import ModelFigures, figures_of
from speechquant.benchmarks.report.image_bytes import inline_svg_of, png_of


@pytest.fixture(scope="module")
def model() -> ModelFigures:
    return figures_of(report()).models[0]


def line(axes: Axes, key: str) -> Line2D:
    return next(line for line in axes.lines if line.get_label() == key)


def test_latency_is_drawn_in_ms_against_seconds(model: ModelFigures) -> None:
    figure = plots.figure_of_latency(model, 1, legend=True)
    axes = figure.axes[0]
    measured = report().results[1]
    expected = []
    for seconds in (1.0, 2.0, 10.0):
        cell = measured.cell(seconds, 1)
        assert cell is not None
        expected.append(np.median(cell.whole) / 1e6)
    drawn = line(axes, "B")
    assert np.asarray(drawn.get_xdata()).tolist() == [1, 2, 10]
    np.testing.assert_allclose(np.asarray(drawn.get_ydata()), expected)
    assert axes.get_ylabel() == "waveform to text (ms)"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "A  base (cpu)",
        "B  base-w8a8 (cpu)",
        "C  ONNX Runtime static INT8, Entropy",
    ]
    colours = [line(axes, key).get_color() for key in "ABC"]
    assert colours == ["#222222", "#0072B2", "#8A8A8A"]


def test_long_latencies_are_drawn_in_seconds(model: ModelFigures) -> None:
    slow = tuple(
        replace(latency, whole=replace(latency.whole, stats=replace(latency.whole.stats, p50=4.5)))
        for latency in model.candidates[0].latencies
    )
    one = replace(model.candidates[0], latencies=slow)
    figure = plots.figure_of_latency(replace(model, candidates=(one,)), 1, legend=False)
    assert figure.axes[0].get_ylabel() == "waveform to text (s)"
    assert np.asarray(line(figure.axes[0], "A").get_ydata()).tolist() == [4.5] * 3


def test_speed_up_has_float_at_one(model: ModelFigures) -> None:
    axes = plots.figure_of_speed_up(model, 1, legend=False).axes[0]
    assert np.asarray(line(axes, "A").get_ydata()).tolist() == [1, 1, 1]
    assert np.asarray(line(axes, "B").get_ydata()) == pytest.approx(2.5, rel=0.06)


def test_throughput_is_seconds_of_audio_in_a_second(model: ModelFigures) -> None:
    axes = plots.figure_of_throughput(model, 10.0, legend=False).axes[0]
    drawn = np.asarray(line(axes, "A").get_ydata())
    expected = [
        10 * batch / (np.median(cell.whole) / 1e9)
        for batch in (1, 4)
        if (cell := report().results[0].cell(10.0, batch))
    ]
    np.testing.assert_allclose(drawn, expected)


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.5, 0.5], [0.55, 0.45]),
        ([0.0, 0.0], [0.1, 0.0]),
        ([1.0, 0.95], [1.0, 0.9]),
        ([0.3, 0.32, 0.34, 0.9], [0.22, 0.32, 0.42, 0.9]),
    ],
)
def test_letters_move_as_little_as_keeps_them_apart(
    places: list[float], moved: list[float]
) -> None:
    assert sorted(plots.spread_out(places, 0.1)) == pytest.approx(sorted(moved))


def test_many_letters_fit() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 7, 12, 40):
        places = plots.spread_out(list(rng.random(count) ** 3), 0.05)
        apart = np.diff(sorted(places))
        assert min(places) >= -1e-9
        assert max(places) <= 1 + 1e-9
        assert all(gap >= min(0.05, 1 / max(count - 1, 1)) - 1e-9 for gap in apart)


def test_both_ends_of_a_long_name_are_kept() -> None:
    assert plots.shortened("short", 10) == "short"
    cut = plots.shortened("ONNX Runtime static INT8, Percentile", 20)
    assert len(cut) <= 20
    assert cut.startswith("ONNX Runtime")
    assert cut.endswith("entile")


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def test_the_texts_of_rows_do_not_touch(model: ModelFigures) -> None:
    long = tuple(
        replace(one, name="a name that is as long as a path on a disk " * 2)
        for one in model.candidates
    )
    figure = drawn(rows.figure_of_sizes(replace(model, candidates=long)))
    texts = [text.get_window_extent() for text in figure.axes[0].texts]
    # A letter, a name and its figures for each row.
    for letter, name, value in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        assert letter.x1 < name.x0
        assert name.x1 < value.x0
    for above, below in pairwise(texts[1::3]):
        assert below.y1 < above.y0


def test_every_run_is_a_dot_and_outliers_are_rings(model: ModelFigures) -> None:
    axes = rows.figure_of_runs(model).axes[0]
    rings = [line for line in axes.lines if line.get_label() == "outlier"]
    assert sum(len(np.asarray(each.get_xdata())) for each in axes.lines) == 3 * 9
    expected = [
        latency.whole.stats.outliers
        for one in model.candidates
        if (latency := one.latency(model.headline))
    ]
    assert [len(np.asarray(each.get_xdata())) for each in rings] == expected
    assert sum(expected) > 0


def test_word_errors_are_drawn_against_floats(model: ModelFigures) -> None:
    axes = rows.figure_of_errors(model).axes[0]
    # 20 and 120 errors more than float's 40 in 300 words.
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    values = [float(np.asarray(dot.get_xdata())[0]) for dot in dots]
    assert values == pytest.approx([100 * 10 / 300, 100 * 60 / 300])


def test_one_that_fell_apart_does_not_flatten_the_others(model: ModelFigures) -> None:
    ours = model.candidates[1]
    assert ours.words is not None
    assert ours.words.difference is not None
    far = replace(ours.words.difference, difference=0.9, low=0.88, high=0.92)
    broken = replace(model.candidates[2], words=replace(ours.words, difference=far))
    several = (model.candidates[0], ours, ours, broken)
    axes = rows.figure_of_errors(replace(model, candidates=several)).axes[0]
    edge = [line for line in axes.lines if line.get_label() == "beyond"]
    assert len(edge) == 1
    assert axes.get_xlim()[1] < 30


def test_word_errors_without_a_float_to_compare_with(model: ModelFigures) -> None:
    alone = replace(model, candidates=(model.candidates[0],))
    assert rows.figure_of_errors(alone).axes[0].get_xlabel() == "WER (%)"


def test_kernels_add_up(model: ModelFigures) -> None:
    axes = rows.figure_of_kernels(model).axes[0]
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sorted(widths) == pytest.approx([40, 200, 250, 600])


def test_svg_follows_the_page(model: ModelFigures) -> None:
    name = 'a $x$ <b>&"#ffffff'
    one = replace(model.candidates[0], name=name)
    alone = replace(model, candidates=(one,))
    svg = inline_svg_of(lambda: rows.figure_of_sizes(alone), "size", name)
    assert svg.startswith('<svg viewBox="0 0 338')
    assert '<title id="size-title">a $x$ &lt;b&gt;&amp;&quot;#ffffff</title>' in svg
    assert 'a $x$ &lt;b&gt;&amp;"#ffffff</text>' in svg
    assert "currentColor" in svg
    assert "var(--sans)" in svg
    for word in ("#222222", "DejaVu", "http", "<style", "<!--", "<svg width", "metadata"):
        assert word not in svg


def test_the_same_numbers_give_the_same_picture(model: ModelFigures) -> None:
    first, second = (inline_svg_of(lambda: rows.figure_of_sizes(model), "a", "t") for _ in "ab")
    assert first == second
    other = inline_svg_of(lambda: rows.figure_of_sizes(model), "b", "t")
    ids = [set(svg.split(' id="')[1:]) for svg in (first, other)]
    assert not {i.split('"')[0] for i in ids[0]} & {i.split('"')[0] for i in ids[1]}


def test_letters_that_the_font_lacks_are_no_reason_to_fail(model: ModelFigures) -> None:
    one = replace(model.candidates[0], name="\u6a21\u578b")
    figure = png_of(lambda: rows.figure_of_sizes(replace(model, candidates=(one,))))
    assert figure.startswith(b"\x89PNG")
