"""The line plots of a bench's pages: something against audio length or batch size, by candidate.

A candidate is known by its letter at the end of its line; colour tells float (black), what
speechquant made (blue) and peers (grey) apart, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechquant.benchmarks.pictures.style import BLACK, BLUE, GREY, new_figure
from speechquant.benchmarks.report.figures import Candidate, Latency, ModelFigures, Shape
from speechquant.benchmarks.report.record import FLOAT, OURS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As wide as a phone shows it at a readable size; two stand side by side on a larger screen.
WIDTH_INCHES, HEIGHT_INCHES = 4.7, 3.3
LABEL_POINTS = 8.5
GRID = "#E4E4E4"
FONT = "DejaVu Sans"  # which matplotlib brings along
# The settings that every picture is drawn with: names are text, not formulas.
STYLE = {
    "text.parse_math": False,
    "font.family": [FONT],
    "font.size": LABEL_POINTS,
    "text.color": BLACK,
    "axes.edgecolor": BLACK,
    "axes.labelcolor": BLACK,
    "axes.linewidth": 0.6,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
_LETTER_GAP = 0.052  # of the height of the axes
_LETTER_OFFSET_INCHES = 0.22
_LEGEND_ROW_INCHES = 0.19
_LEGEND_NAME = 34
_MS, _SECONDS_FROM_MS = 1e3, 2_000
_LEAST_TICK_GAP = 0.03  # of the axis
Triple = tuple[float, float, float]  # a value and the band that it lies in


@dataclass(frozen=True)
class Line:
    """A candidate's line and the band that it lies in."""

    candidate: Candidate
    at: tuple[float, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def colour_of(candidate: Candidate) -> str:
    """Return the colour of a candidate's role."""
    return {FLOAT: BLACK, OURS: BLUE}.get(candidate.role, GREY)


def shortened(name: str, most: int) -> str:
    """Return a name, cut in the middle where it is too long: both ends tell names apart."""
    if len(name) <= most:
        return name
    head = (most - 1) * 2 // 3
    return f"{name[:head].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (most - 1 - head) :]}"


def figure_of_latency(model: ModelFigures, batch: int, *, legend: bool) -> Figure:
    """Return the latency against audio length, with the band of the quartiles."""
    lines = _lines(
        model,
        [(seconds, batch) for seconds in model.lengths(batch)],
        lambda latency: latency.shape[0],
        lambda latency: (
            latency.whole.stats.p50 * _MS,
            latency.whole.stats.lower_quartile * _MS,
            latency.whole.stats.upper_quartile * _MS,
        ),
    )
    unit = "ms"
    if max(max(line.values) for line in lines) >= _SECONDS_FROM_MS:
        unit, lines = "s", [_scaled(line, 1 / _MS) for line in lines]
    figure, axes = _axes(lines, legend=legend)
    _draw(axes, lines)
    _length_axis(axes, lines)
    axes.set_ylabel(f"waveform to text ({unit})")
    return figure


def figure_of_speed_up(model: ModelFigures, batch: int, *, legend: bool) -> Figure:
    """Return how many times as fast as float each is, against audio length, with intervals."""
    lines = _lines(
        model,
        [(seconds, batch) for seconds in model.lengths(batch)],
        lambda latency: latency.shape[0],
        _speed_up_of,
        baseline=(1.0, 1.0, 1.0),
    )
    figure, axes = _axes(lines, legend=legend)
    _draw(axes, lines)
    _length_axis(axes, lines)
    axes.set_ylabel("times as fast as float")
    return figure


def has_speed_up(model: ModelFigures, batch: int) -> bool:
    """Return whether there is anything for `figure_of_speed_up`."""
    return any(
        latency.whole.speed_up and latency.shape[1] == batch
        for one in model.candidates
        for latency in one.latencies
    )


def _speed_up_of(latency: Latency) -> Triple | None:
    found = latency.whole.speed_up
    return (found.value, found.low, found.high) if found else None


def figure_of_throughput(model: ModelFigures, seconds: float, *, legend: bool) -> Figure:
    """Return the seconds of audio that are done in a second, against the batch size."""
    batches = [batch for batch in model.batches if (seconds, batch) in model.shapes]
    lines = _lines(
        model,
        [(seconds, batch) for batch in batches],
        lambda latency: float(batches.index(latency.shape[1])),
        lambda latency: (
            latency.throughput,
            latency.audio_seconds / latency.whole.stats.upper_quartile,
            latency.audio_seconds / latency.whole.stats.lower_quartile,
        ),
    )
    figure, axes = _axes(lines, legend=legend)
    _draw(axes, lines)
    axes.set_xlim(-0.15, max(line.at[-1] for line in lines))
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlabel(f"clips of {seconds:g} s run together")
    axes.set_ylabel("seconds of audio in a second")
    return figure


def _lines(
    model: ModelFigures,
    shapes: Sequence[Shape],
    place: Callable[[Latency], float],
    values: Callable[[Latency], Triple | None],
    baseline: Triple | None = None,
) -> list[Line]:
    """Return what `values` gives of each candidate; of float `baseline`, where it is given."""
    lines = []
    for one in model.candidates:
        own = baseline if one.is_baseline else None
        found = [
            (place(latency), *triple)
            for shape in shapes
            if (latency := one.latency(shape)) and (triple := own or values(latency))
        ]
        if found:
            lines.append(Line(one, *(tuple(column) for column in zip(*found, strict=True))))
    return lines


def _scaled(line: Line, factor: float) -> Line:
    columns = (line.values, line.lows, line.highs)
    scaled = (tuple(value * factor for value in column) for column in columns)
    return Line(line.candidate, line.at, *scaled)


def _axes(lines: Sequence[Line], *, legend: bool) -> tuple[Figure, Axes]:
    rows = -(-len(lines) // 2) if legend else 0
    figure = new_figure(
        WIDTH_INCHES + (1.3 if legend else 0), HEIGHT_INCHES + _LEGEND_ROW_INCHES * rows
    )
    if legend:
        figure.legend(
            handles=[_handle(line.candidate) for line in lines],
            loc="outside lower left",
            ncols=2,
            frameon=False,
            handlelength=1.2,
            columnspacing=1.4,
        )
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(0, 1.04 * max(max(*line.highs, *line.values) for line in lines))
    return figure, axes


def _handle(one: Candidate) -> Artist:
    from matplotlib.lines import Line2D

    label = f"{one.key}  {shortened(one.name, _LEGEND_NAME)}"
    return Line2D([], [], color=colour_of(one), linewidth=1.6, label=label)


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    # Peers first, so that they lie below what the page is about.
    order = {FLOAT: 2, OURS: 3}
    for line in sorted(lines, key=lambda line: order.get(line.candidate.role, 1)):
        colour, role = colour_of(line.candidate), line.candidate.role
        level = 2 + 0.1 * order.get(role, 1)
        axes.fill_between(
            line.at, line.lows, line.highs, color=colour, alpha=0.18, linewidth=0, zorder=level
        )
        axes.plot(
            line.at, line.values, color=colour, linewidth=1.8 if role in order else 1.1,
            marker="o", markersize=3.2 if role in order else 2.4, zorder=level,
            label=line.candidate.key, clip_on=False,
        )  # fmt: skip
    _write_letters(axes, lines)


def _write_letters(axes: Axes, lines: Sequence[Line]) -> None:
    """Write the letter of each line beside its end, those that end at the edge in one column."""
    from matplotlib.transforms import ScaledTranslation

    points = ScaledTranslation(_LETTER_OFFSET_INCHES, 0, axes.figure.dpi_scale_trans)
    beside = axes.transAxes + points
    end = max(line.at[-1] for line in lines)
    last = [line for line in lines if line.at[-1] == end]
    top = axes.get_ylim()[1]
    heights = spread_out([line.values[-1] / top for line in last], _LETTER_GAP)
    for line, height in zip(last, heights, strict=True):
        colour = colour_of(line.candidate)
        axes.annotate(
            line.candidate.key, (end, line.values[-1]), (1, height), textcoords=beside,
            color=colour, fontweight="bold", va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1,
                        "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip
    for line in lines:
        if line not in last:
            axes.annotate(
                line.candidate.key, (line.at[-1], line.values[-1]), (5, 0), va="center",
                textcoords="offset points", color=colour_of(line.candidate), fontweight="bold",
            )  # fmt: skip


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Return places in 0..1 moved as little as keeps them apart, in the order given."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    moved = [0.0] * len(places)
    # Neighbours that are too close share the space around their mean.
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _low(groups[-1], places, gap) < _high(groups[-2], places, gap):
            merged = groups.pop()
            groups[-1] += merged
    for group in groups:
        start = _low(group, places, gap) + gap / 2
        for rank, index in enumerate(group):
            moved[index] = start + rank * gap
    return moved


def _low(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    half = len(group) * gap / 2
    centre = sum(places[index] for index in group) / len(group)
    return min(max(centre, half - gap / 2), 1 + gap / 2 - half) - half


def _high(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _low(group, places, gap) + len(group) * gap


def _length_axis(axes: Axes, lines: Sequence[Line]) -> None:
    lengths = sorted({seconds for line in lines for seconds in line.at})
    ticks: list[float] = []
    for seconds in lengths:
        if not ticks or seconds - ticks[-1] >= _LEAST_TICK_GAP * lengths[-1]:
            ticks.append(seconds)
    axes.set_xlim(0, lengths[-1])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("length of the audio (s)")
