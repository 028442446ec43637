"""StableQuant's search: what each layer alone does to WER, and WER by percentile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechquant.benchmarks.pictures.style import (
    BLACK,
    BLUE,
    GREY,
    MINUS,
    ROW_INCHES,
    TEXT_POINTS,
    TITLE_POINTS,
    VERMILION,
    label_layers,
    legend_below,
    new_figure,
    require_some,
    save_figure,
    write_columns,
    write_title,
)
from speechquant.benchmarks.search import LayerEffect, PercentilePoint
from speechquant.core.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCH = "//////"
_GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
# A log axis once the largest change would press the threshold onto zero.
_LOG_FROM_GAMMAS = 20.0
_LEAST_GAMMA_POINTS = 0.05  # what the log axis is linear to where gamma is smaller
# Candidates far above the others stand at the upper edge, or the others would be one flat line.
_LEAST_WER_RANGE_POINTS = 0.5
_WER_RANGE_MEDIANS = 3.0
_PERCENTILE_STEP = 0.01


def draw_layer_effects(effects: Sequence[LayerEffect], gamma_points: float, path: Path) -> None:
    """Write `figure_of_layer_effects` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_layer_effects(effects, gamma_points), path)


def draw_percentiles(points: Sequence[PercentilePoint], chosen: float, path: Path) -> None:
    """Write `figure_of_percentiles` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_percentiles(points, chosen), path)


def figure_of_layer_effects(effects: Sequence[LayerEffect], gamma_points: float) -> Figure:
    """Return the change of WER by each layer alone; hatched where it was decided early."""
    require_some(effects, "layers")
    figure = new_figure(8, 1.6 + 0.85 * ROW_INCHES * len(effects))
    axes = figure.subplots()
    label_layers(axes, [effect.layer for effect in effects])
    for row, effect in enumerate(effects):
        _draw_effect(axes, row, effect)
    axes.axvline(0, color=BLACK, linewidth=0.8, zorder=4)
    axes.axvline(gamma_points, color=BLACK, linewidth=1.2, linestyle="--", zorder=5, label="gamma")
    _scale_effects(axes, effects, gamma_points)
    cells = [
        (_points_text(effect.change_points), f"{100 * effect.evaluated_share:.0f} %")
        for effect in effects
    ]
    write_columns(axes, ("change", "heard"), cells)
    legend_below(figure, _effect_legend(effects, gamma_points), columns=3)
    selected = sum(effect.selected for effect in effects)
    verb = "adds" if selected == 1 else "add"
    write_title(
        figure,
        f"{selected} of {len(effects)} layers {verb} more than {gamma_points:g} points of WER, "
        "quantized alone",
    )
    return figure


def _points_text(points: float) -> str:
    text = f"{points:+.2f}".replace("-", MINUS)
    return "0.00" if text.strip(f"+{MINUS}0.") == "" else text


def _effect_colour(selected: bool) -> str:
    return VERMILION if selected else BLUE


def _draw_effect(axes: Axes, row: int, effect: LayerEffect) -> None:
    colour = _effect_colour(effect.selected)
    early = effect.evaluated_share < 1
    axes.barh(
        row, effect.change_points, 0.62, facecolor="white" if early else colour, edgecolor=colour,
        hatch=_HATCH if early else None, linewidth=1, zorder=3,
    )  # fmt: skip
    if effect.bound is not None:
        ends = sorted((effect.change_points, effect.bound))
        axes.hlines(row, ends[0], ends[1], color=BLACK, linewidth=1, zorder=4, label="bound")
        axes.plot(effect.bound, row, "|", color=BLACK, markersize=6, zorder=4)


def _scale_effects(axes: Axes, effects: Sequence[LayerEffect], gamma_points: float) -> None:
    from matplotlib.ticker import NullLocator

    values = [effect.change_points for effect in effects]
    values += [effect.bound for effect in effects if effect.bound is not None]
    label = "change of WER against the float model (percentage points"
    linear = max(gamma_points, _LEAST_GAMMA_POINTS)
    low, high = min(0.0, *values), max(linear, *values)
    if max(high, -low) > _LOG_FROM_GAMMAS * linear:
        axes.set_xscale("symlog", linthresh=linear, linscale=0.6)
        decades = [sign * 10.0**power for sign in (-1, 1) for power in range(-1, 4)]
        axes.set_xticks([0.0, *(tick for tick in decades if linear < abs(tick))])
        axes.set_xlim(1.6 * low - 0.1 * linear, 1.6 * high)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        label += ", log scale beyond the threshold"
    axes.set_xlabel(f"{label})", fontsize=TEXT_POINTS)


def _effect_legend(effects: Sequence[LayerEffect], gamma_points: float) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [
        Patch(color=_effect_colour(True), label="joins S: its outliers are clipped"),
        Patch(color=_effect_colour(False), label="stays out of S"),
        Line2D([], [], color=BLACK, linestyle="--", label=f"threshold {_GAMMA} = {gamma_points:g}"),
    ]
    if any(effect.evaluated_share < 1 for effect in effects):
        label = "estimated from the utterances heard"
        handles.append(Patch(facecolor="white", edgecolor=GREY, hatch=_HATCH, label=label))
    if any(effect.bound is not None for effect in effects):
        handles.append(Line2D([], [], color=BLACK, linewidth=1, label="bound it was decided on"))
    return handles


def figure_of_percentiles(points: Sequence[PercentilePoint], chosen: float) -> Figure:
    """Return WER against the percentile, hollow where only some of the utterances were heard.

    Raises OptionError where `chosen` is none of the percentiles.
    """
    require_some(points, "percentiles")
    winner = next((p for p in points if math.isclose(p.percentile, chosen, abs_tol=1e-9)), None)
    if winner is None:
        raise OptionError(f"percentile {chosen:g} was chosen, but no point has it; add its point")
    figure = new_figure(7.5, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=TEXT_POINTS)
    _draw_points(upper, points, winner)
    _draw_shares(lower, points, winner)
    figure.align_ylabels()
    full = sum(point.evaluated_share >= 1 for point in points)
    write_title(figure, f"WER is least, {100 * winner.wer:.2f} %, at p = {winner.percentile:g} %")
    upper.set_title(
        f"{full} of {len(points)} candidates heard every utterance", fontsize=TITLE_POINTS
    )
    legend_below(figure, _percentile_legend(points, winner), columns=2)
    return figure


def _highest_shown(points: Sequence[PercentilePoint], winner: PercentilePoint) -> float:
    """Return the largest WER in percent that has its true place on the axis."""
    rates = [100 * point.wer for point in points]
    spread = _WER_RANGE_MEDIANS * (float(np.median(rates)) - min(rates))
    return max(min(rates) + max(spread, _LEAST_WER_RANGE_POINTS), 100 * winner.wer)


def _draw_points(axes: Axes, points: Sequence[PercentilePoint], winner: PercentilePoint) -> None:
    highest = _highest_shown(points, winner)
    for label, marker in (("full", "o"), ("partial", "o"), ("above", "^")):
        group = [point for point in points if _group_of(point, highest) == label]
        rates = [min(100 * point.wer, highest) for point in group]
        axes.scatter(
            [point.percentile for point in group], rates, s=30, marker=marker, edgecolors=BLUE,
            c=[BLUE if point.evaluated_share >= 1 else "white" for point in group], zorder=3,
            label=label, clip_on=False,
        )  # fmt: skip
    axes.axvline(winner.percentile, color=VERMILION, linewidth=1, linestyle=":", zorder=2)
    axes.scatter(
        winner.percentile, 100 * winner.wer, s=130, facecolors="none", edgecolors=VERMILION,
        linewidths=2, zorder=4, label="chosen",
    )  # fmt: skip
    axes.set_ylabel("WER (%)", fontsize=TEXT_POINTS)
    if any(_group_of(point, highest) == "above" for point in points):
        axes.set_ylim(top=highest)


def _group_of(point: PercentilePoint, highest: float) -> str:
    if 100 * point.wer > highest:
        return "above"
    return "full" if point.evaluated_share >= 1 else "partial"


def _draw_shares(axes: Axes, points: Sequence[PercentilePoint], winner: PercentilePoint) -> None:
    percentiles = sorted(point.percentile for point in points)
    step = min(np.diff(percentiles), default=_PERCENTILE_STEP)
    axes.bar(
        [point.percentile for point in points],
        [100 * point.evaluated_share for point in points],
        0.7 * step,
        color=[VERMILION if point is winner else BLUE for point in points],
    )
    axes.set_xlim(percentiles[0] - 1.5 * step, percentiles[-1] + 1.5 * step)
    axes.set_ylim(0, 105)
    axes.set_yticks((0, 50, 100))
    axes.set_ylabel("utterances\nheard (%)", fontsize=TEXT_POINTS)
    axes.set_xlabel(
        "p: share of the largest values left out in the clipped layers (%)", fontsize=TEXT_POINTS
    )


def _percentile_legend(points: Sequence[PercentilePoint], winner: PercentilePoint) -> list[Artist]:
    highest = _highest_shown(points, winner)
    above = [100 * point.wer for point in points if 100 * point.wer > highest]
    handles = [_dot("none", VERMILION, f"chosen: p = {winner.percentile:g} %", size_points=10)]
    if any(point.evaluated_share >= 1 for point in points):
        handles.append(_dot(BLUE, BLUE, "WER of all utterances"))
    if any(point.evaluated_share < 1 for point in points):
        handles.append(_dot("white", BLUE, "estimated from the utterances heard"))
    if above:
        label = f"higher than the axis goes: up to {max(above):.1f} %"
        handles.append(_dot("white", BLUE, label, marker="^"))
    return handles


def _dot(face: str, edge: str, label: str, *, marker: str = "o", size_points: float = 6) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", marker=marker, markersize=size_points, markerfacecolor=face,
        markeredgecolor=edge, label=label,
    )  # fmt: skip
