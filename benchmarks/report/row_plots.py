"""The pictures of a bench's pages that have a row for each candidate: bars, dots, whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechquant.benchmarks.pictures.style import BLACK, GREY, VERMILION, new_figure
from speechquant.benchmarks.report import words
from speechquant.benchmarks.report.figures import (
    Candidate,
    Errors,
    ModelFigures,
    Timed,
    TokenTimes,
)
from speechquant.benchmarks.report.plots import (
    GRID,
    WIDTH_INCHES,
    colour_of,
    shortened,
)
from speechquant.benchmarks.report.statistics import outliers_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = tuple[Candidate, str]  # and the figures that stand at the end of its row
_ROW_INCHES, _AXIS_INCHES = 0.36, 0.55
_NAME_AT, _DRAWN_AT = -0.24, 0.18  # of a row, from its middle, downwards
_MOST_CHARACTERS = 56  # of a name and the figures beside it
_BAR, _STRIP = 0.3, 0.34
# What lies this many times as far out as the middle candidate is drawn at the edge.
_MOST_MEDIANS, _LEAST_POINTS = 4.0, 1.0
_KERNELS, _OTHERS = 7, "all others"
# Apart from each other, from the colours of the roles, and seen on white and on black.
_STACK_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#B3A100", "#7B5EA7", "#A0522D")


def figure_of_bars(rows: Sequence[Row], values: Sequence[float], label: str) -> Figure:
    """Return a bar for each row, from zero."""
    figure, axes = _rows(rows, label)
    for row, ((one, _), value) in enumerate(zip(rows, values, strict=True)):
        axes.barh(row + _DRAWN_AT, value, _BAR, color=colour_of(one), zorder=3)
    axes.set_xlim(0, 1.02 * max(values) or 1)
    return figure


def figure_of_sizes(model: ModelFigures) -> Figure:
    """Return the bytes that each candidate takes on disk."""
    sized = [one for one in model.candidates if one.size_bytes is not None]
    rows = [(one, words.megabytes(one.size_bytes)) for one in sized]
    return figure_of_bars(rows, [(one.size_bytes or 0) / 1e6 for one in sized], "size (MB)")


def figure_of_memory(model: ModelFigures) -> Figure:
    """Return the most memory that each candidate held."""
    held = [one for one in model.candidates if one.peak_bytes is not None]
    rows = [(one, words.gibibytes(one.peak_bytes)) for one in held]
    values = [(one.peak_bytes or 0) / 2**30 for one in held]
    return figure_of_bars(rows, values, "peak memory of the process (GiB)")


def figure_of_runs(model: ModelFigures) -> Figure:
    """Return every run on the headline shape as a dot; outliers are rings."""
    timed = [
        (one, latency.whole)
        for one in model.candidates
        if (latency := one.latency(model.headline)) is not None
    ]
    rows = [
        (one, f"{words.milliseconds(whole.stats.p50)} ms, {_outliers_text(whole)}")
        for one, whole in timed
    ]
    figure, axes = _rows(rows, f"waveform to text at {words.shape(model.headline or (0, 1))} (ms)")
    for row, (one, whole) in enumerate(timed):
        _draw_runs(axes, row + _DRAWN_AT, one, whole)
    axes.set_xlim(left=0)
    return figure


def _outliers_text(timed: Timed) -> str:
    return words.count(timed.stats.outliers, "outlier") if timed.stats.outliers else "no outlier"


def _draw_runs(axes: Axes, row: float, one: Candidate, timed: Timed) -> None:
    values = np.asarray(timed.samples, np.float64) / 1e6
    # Heights in the order of the runs: a drift shows as a slope.
    heights = row + _STRIP * ((np.arange(len(values)) + 0.5) / len(values) - 0.5)
    low, high = 1e3 * timed.stats.lower_quartile, 1e3 * timed.stats.upper_quartile
    beyond = outliers_of(values, low, high)
    colour = colour_of(one)
    axes.plot(
        values[~beyond], heights[~beyond], "o", color=colour, markersize=2.6, alpha=0.55,
        markeredgewidth=0, zorder=3,
    )  # fmt: skip
    axes.plot(
        values[beyond], heights[beyond], "o", markerfacecolor="none", markeredgecolor=VERMILION,
        markersize=4, markeredgewidth=1, zorder=4, label="outlier",
    )  # fmt: skip
    median = 1e3 * timed.stats.p50
    axes.vlines(median, row - 0.24, row + 0.24, color=colour, linewidth=1.2, zorder=5)


def figure_of_errors(model: ModelFigures) -> Figure:
    """Return WER minus float's with its interval, or WER itself where there is no float's."""
    scored = [(one, one.words) for one in model.candidates if one.words]
    paired = [(one, errors) for one, errors in scored if errors.difference]
    if paired:
        rows = [(one, words.difference(errors.difference)) for one, errors in paired]
        spans = [_difference_of(errors) for _, errors in paired]
        figure, axes = _rows(rows, "WER minus float's (percentage points)")
        axes.axvline(0, color=BLACK, linewidth=1, zorder=2)
    else:
        rows = [(one, words.percent(errors.rate.rate)) for one, errors in scored]
        spans = [_rate_of(errors) for _, errors in scored]
        figure, axes = _rows(rows, "WER (%)")
    edge = _edge(spans)
    for row, ((one, _), span) in enumerate(zip(rows, spans, strict=True)):
        _draw_span(axes, row + _DRAWN_AT, colour_of(one), span, edge)
    low = min(0.0, *(min(span) for span in spans))
    margin = 0.05 * (edge - low)
    axes.set_xlim(low - margin if paired else 0, edge + margin)
    return figure


def _difference_of(errors: Errors) -> tuple[float, float, float]:
    found = errors.difference or errors.interval
    return 100 * found.difference, 100 * found.low, 100 * found.high


def _rate_of(errors: Errors) -> tuple[float, float, float]:
    return 100 * errors.rate.rate, 100 * errors.interval.low, 100 * errors.interval.high


def _edge(spans: Sequence[tuple[float, float, float]]) -> float:
    """Return how far the axis goes: a candidate that fell apart must not flatten the others."""
    highs = [max(span) for span in spans]
    middle = float(np.median([max(high, 0.0) for high in highs]))
    return max(min(max(highs), _MOST_MEDIANS * middle), _LEAST_POINTS)


def _draw_span(
    axes: Axes, row: float, colour: str, span: tuple[float, float, float], edge: float
) -> None:
    value, low, high = span
    if value > edge:
        axes.plot(edge, row, ">", color=colour, markersize=6, zorder=4, label="beyond")
        low = min(low, edge)
    else:
        axes.plot(value, row, "o", color=colour, markersize=5, zorder=4)
    axes.hlines(row, low, min(high, edge), color=colour, linewidth=1.4, zorder=3)


def figure_of_kernels(model: ModelFigures) -> Figure:
    """Return the time of one run of each candidate, split by kind of kernel."""
    profiled = [one for one in model.candidates if one.kernels]
    names = main_kernels(profiled)
    stacks = [_kernel_stack(one, names) for one in profiled]
    rows = [
        (one, f"{words.milliseconds(sum(stack.values()))} ms")
        for one, stack in zip(profiled, stacks, strict=True)
    ]
    return _figure_of_stacks(rows, stacks, "kernels in one run (ms)", legend_columns=2)


def _kernel_stack(one: Candidate, names: Sequence[str]) -> dict[str, float]:
    """Return the seconds of each of `names`, and of all other kernels together."""
    found = dict.fromkeys((*names, _OTHERS), 0.0)
    for kernel in one.kernels:
        found[kernel.name if kernel.name in names else _OTHERS] += kernel.seconds
    return found


def figure_of_first_token(model: ModelFigures) -> Figure:
    """Return the time to the first token on the headline shape, split into its parts."""
    timed = _with_tokens(model)
    stacks = [
        {
            "features": tokens.features.stats.p50,
            "encoder": tokens.encoder.stats.p50,
            "prefill": tokens.prefill.stats.p50,
        }
        for _, tokens in timed
    ]
    rows = [
        (one, f"{words.milliseconds(tokens.first_token.stats.p50)} ms") for one, tokens in timed
    ]
    return _figure_of_stacks(rows, stacks, "to the first token (ms)", legend_columns=3)


def figure_of_later_token(model: ModelFigures) -> Figure:
    """Return the time of each token after the first on the headline shape."""
    timed = [(one, tokens.later_token.stats.p50) for one, tokens in _with_tokens(model)]
    rows = [(one, f"{words.milliseconds(seconds)} ms") for one, seconds in timed]
    return figure_of_bars(rows, [1e3 * seconds for _, seconds in timed], "each later token (ms)")


def _with_tokens(model: ModelFigures) -> list[tuple[Candidate, TokenTimes]]:
    found = ((one, one.latency(model.headline)) for one in model.candidates)
    return [(one, latency.tokens) for one, latency in found if latency and latency.tokens]


def _figure_of_stacks(
    rows: Sequence[Row], stacks: Sequence[Mapping[str, float]], label: str, *, legend_columns: int
) -> Figure:
    """Return a bar for each row, made of seconds by name, and a legend; all have the same names."""
    names = tuple(stacks[0])
    figure, axes = _rows(rows, label, legend_rows=-(-len(names) // legend_columns))
    for row, stack in enumerate(stacks):
        _draw_stack(axes, row + _DRAWN_AT, stack)
    axes.set_xlim(0, 1.02e3 * max(sum(stack.values()) for stack in stacks))
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    shown = [shortened(name, 30) for name in names if shortened(name, 30) in found]
    figure.legend(
        [found[name] for name in shown], shown, loc="outside lower left", ncols=legend_columns,
        frameon=False, handlelength=1, columnspacing=1.4,
    )  # fmt: skip
    return figure


def main_kernels(candidates: Sequence[Candidate]) -> list[str]:
    """Return the kinds of kernel that take the largest shares, in the order of their names."""
    largest: dict[str, float] = {}
    for one in candidates:
        for kernel in one.kernels:
            largest[kernel.name] = max(largest.get(kernel.name, 0.0), kernel.share)
    return sorted(sorted(largest, key=lambda name: (-largest[name], name))[:_KERNELS])


def _draw_stack(axes: Axes, row: float, stack: Mapping[str, float]) -> None:
    colours = {**dict(zip(stack, _STACK_COLOURS, strict=False)), _OTHERS: GREY}
    left = 0.0
    for name, seconds in stack.items():
        width = 1e3 * seconds
        if width > 1e-6:
            axes.barh(
                row, width, _BAR, left, color=colours[name], edgecolor="white", linewidth=0.5,
                zorder=3, label=shortened(name, 30),
            )  # fmt: skip
        left += width


def _rows(rows: Sequence[Row], label: str, *, legend_rows: int = 0) -> tuple[Figure, Axes]:
    """Return axes with a line of text over the place of each row: a name and its figures."""
    height = _AXIS_INCHES + _ROW_INCHES * len(rows) + 0.19 * legend_rows
    figure = new_figure(WIDTH_INCHES, height)
    axes = figure.subplots()
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    for row, (one, figures) in enumerate(rows):
        _write_row(axes, row + _NAME_AT, one, figures)
    return figure, axes


def _write_row(axes: Axes, row: float, one: Candidate, figures: str) -> None:
    name = shortened(one.name, _MOST_CHARACTERS - len(figures))
    texts = (
        (0.0, 0, "left", "bold", colour_of(one), one.key),
        (0.0, 7 * len(one.key) + 5, "left", "normal", BLACK, name),
        (1.0, 0, "right", "normal", BLACK, figures),
    )
    for place, points, side, weight, colour, text in texts:
        axes.annotate(
            text, (place, row), (points, 0), xycoords=axes.get_yaxis_transform(), va="center",
            textcoords="offset points", ha=side, fontweight=weight, color=colour,
            annotation_clip=False,
            # Grid lines end where a text begins.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
