"""Word errors against time: the candidates of each checkpoint as points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.benchmarks.pictures.style import (
    BLACK,
    BLUE,
    GREY,
    TEXT_POINTS,
    VERMILION,
    legend_below,
    new_figure,
    require_some,
    save_figure,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P")
_COLOURS = (BLUE, BLUE, VERMILION, GREY, BLACK)


@dataclass(frozen=True)
class Point:
    """A candidate of a checkpoint: seconds of computing per second of audio, and its WER."""

    checkpoint: str
    candidate: str
    real_time_factor: float
    wer: float


def draw_words_and_speed(points: Sequence[Point], path: Path) -> None:
    """Write `figure_of_words_and_speed` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_words_and_speed(points), path)


def figure_of_words_and_speed(points: Sequence[Point]) -> Figure:
    """Return a panel for each checkpoint; lower is better, and so is further to the left."""
    require_some(points, "candidates")
    checkpoints = list(dict.fromkeys(point.checkpoint for point in points))
    candidates = list(dict.fromkeys(point.candidate for point in points))
    figure = new_figure(1.0 + 3.6 * len(checkpoints), 3.6)
    panels = figure.subplots(1, len(checkpoints), squeeze=False)[0]
    for axes, checkpoint in zip(panels, checkpoints, strict=True):
        own = [point for point in points if point.checkpoint == checkpoint]
        _draw_panel(axes, checkpoint, own, candidates)
    panels[0].set_ylabel("WER, %", fontsize=TEXT_POINTS)
    handles = [panels[0].plot([], [], **_style(index), label=name)[0]
               for index, name in enumerate(candidates)]  # fmt: skip
    legend_below(figure, handles, columns=min(3, 1 + len(checkpoints)))
    write_title(figure, "Word errors against time")
    return figure


def _draw_panel(
    axes: Axes, checkpoint: str, points: Sequence[Point], candidates: Sequence[str]
) -> None:
    for point in points:
        style = _style(candidates.index(point.candidate))
        axes.plot(point.real_time_factor, 100 * point.wer, **style)  # type: ignore[arg-type]
    rates = [100 * point.wer for point in points]
    # A point of WER at least, so that noise does not fill the picture.
    middle, half = (min(rates) + max(rates)) / 2, max(0.5, 0.6 * (max(rates) - min(rates)))
    axes.set_ylim(middle - half, middle + half)
    axes.set_xlim(0, 1.15 * max(point.real_time_factor for point in points))
    axes.set_title(checkpoint, fontsize=TEXT_POINTS)
    axes.set_xlabel("seconds of computing per second of audio", fontsize=TEXT_POINTS)
    axes.tick_params(labelsize=TEXT_POINTS)
    axes.grid(color="#D8D8D8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _style(index: int) -> dict[str, object]:
    return {
        "marker": _MARKERS[index % len(_MARKERS)],
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": "none",
        "markersize": 7,
    }
