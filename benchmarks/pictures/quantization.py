"""Pictures of a quantized bundle: its amplitudes and clips, and StableQuant's two stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import CalibrationError, MissingPackageError, OptionError
from speechquant.core.files import new_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["activation", "weight"]
Floats = NDArray[np.float64]

# The boxes of a tensor begin at the first share and end at the next ones.
BOX_SHARES = (0.5, 0.99, 0.999, 0.9999)
TAIL_SHARE = 0.999
_ROUNDING = 1e-12  # of a share that is a quotient of counts

DOTS_PER_INCH = 150
SUFFIXES = (".png", ".svg")

# Okabe and Ito's palette, which stays apart under every common colour blindness.
BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
_BOX_COLOURS = ("#08519C", "#6BAED6", "#C6DBEF")
_BAND_COLOUR = "#F4F4F4"
TEXT_POINTS, _TITLE_POINTS = 8.0, 9.5
_ROW_INCHES = 0.29
_HATCH = "//////"
TIMES, MINUS, _GAMMA = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER GAMMA}"

# Medians of nearly dead tensors would push the tails, which matter, to the edge.
_MAX_DECADES = 6.0
# A log axis once the largest change would press the threshold onto zero.
_LOG_FROM_GAMMAS = 20.0
_LEAST_GAMMA_POINTS = 0.05  # what the log axis is linear to where gamma is smaller
# Candidates far above the others stand at the upper edge, or the others would be one flat line.
_LEAST_WER_RANGE_POINTS = 0.5
_WER_RANGE_MEDIANS = 3.0
_PERCENTILE_STEP = 0.01


@dataclass(frozen=True)
class TensorAmplitudes:
    """The histogram of |x| of one tensor and where its quantizer clips.

    `edges` has one value more than `counts`. `clip` is the quantizer's largest magnitude, of a
    weight that of its widest channel.
    """

    name: str
    layer: str
    kind: Kind
    edges: Floats
    counts: NDArray[np.int64] | Floats
    clip: float
    largest: float

    def amplitudes_at(self, shares: Sequence[float]) -> Floats:
        """Return the least amplitudes that these shares of the values do not exceed."""
        edges, below = self._distribution()
        # By hand, because np.interp jumps over the empty bins that follow a share met exactly.
        asked = np.asarray(shares, dtype=np.float64) - _ROUNDING
        above = np.searchsorted(below, asked)
        into_bin = (asked - below[above - 1]) / (below[above] - below[above - 1])
        return np.asarray(edges[above - 1] + into_bin * (edges[above] - edges[above - 1]))

    @property
    def clipped_share(self) -> float:
        """The share of the values that is larger than the clip."""
        edges, below = self._distribution()
        return float(1 - np.interp(self.clip, edges, below))

    @property
    def tail_ratio(self) -> float:
        """How many times the largest value is the 99.9 % quantile; 1 for a tensor of zeros."""
        if self.largest == 0:
            return 1.0
        return self.largest / float(self.amplitudes_at([TAIL_SHARE])[0])

    def _distribution(self) -> tuple[Floats, Floats]:
        # The last bin may reach beyond the largest value, where nothing is.
        edges = np.minimum(np.asarray(self.edges, dtype=np.float64), self.largest)
        below = np.concatenate([[0.0], np.cumsum(self.counts, dtype=np.float64)])
        if below[-1] == 0:
            raise CalibrationError(f"{self.name}: an empty histogram; calibrate on more audio")
        return edges, below / below[-1]


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer alone does to WER: stage 1 of StableQuant.

    `change_points` and `bound` are percentage points. `bound` is the end of the interval that let
    the search decide after `evaluated_share` of the utterances, None where it saw all of them.
    """

    layer: str
    change_points: float
    selected: bool
    evaluated_share: float
    bound: float | None = None


@dataclass(frozen=True)
class PercentilePoint:
    """WER (a fraction, as ErrorRate.rate) of one candidate percentile: stage 2 of StableQuant."""

    percentile: float
    wer: float
    evaluated_share: float


def draw_distributions(rows: Sequence[TensorAmplitudes], path: Path) -> None:
    """Write `figure_of_distributions` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_distributions(rows), path)


def draw_layer_effects(effects: Sequence[LayerEffect], gamma_points: float, path: Path) -> None:
    """Write `figure_of_layer_effects` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_layer_effects(effects, gamma_points), path)


def draw_percentiles(points: Sequence[PercentilePoint], chosen: float, path: Path) -> None:
    """Write `figure_of_percentiles` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_percentiles(points, chosen), path)


def save_figure(make_figure: Callable[[], Figure], path: Path) -> None:
    """Write a picture in the format of its suffix; raises OptionError and StorageError."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f"{path}: no such picture format; name it {' or '.join(SUFFIXES)}")
    figure = make_figure()
    import matplotlib

    # Without a date and random names, the same numbers give the same file.
    metadata = {"Date": None} if suffix == ".svg" else {}
    with (
        matplotlib.rc_context({"svg.hashsalt": "speechquant"}),
        new_file(path, force=True) as partial,
    ):
        figure.savefig(partial, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Return an empty figure; raises MissingPackageError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "pictures need matplotlib: pip install 'speechquant[report]'"
        ) from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _require_some(records: Sequence[object], what: str) -> None:
    if not records:
        raise OptionError(f"no {what} to draw; give at least one")


# --- amplitudes ---------------------------------------------------------------------------------


def figure_of_distributions(rows: Sequence[TensorAmplitudes]) -> Figure:
    """Return activations beside weights: a row per layer, in it a bar per tensor with its clip.

    Layers and tensors stand in the order given.
    """
    _require_some(rows, "tensors")
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = new_figure(11.5, 1.6 + _ROW_INCHES * len(layers))
    panels: tuple[tuple[Kind, str], ...] = (("activation", "Activations"), ("weight", "Weights"))
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        tensors = [row for row in rows if row.kind == kind]
        _label_layers(axes, layers)
        _draw_amplitudes(axes, tensors, layers)
        _write_columns(axes, ("max /\n99.9 %", "clipped"), _amplitude_cells(tensors, layers))
        axes.set_title(f"{title}: {_summary(tensors)}", fontsize=_TITLE_POINTS, loc="left")
        axes.set_xlabel(
            f"|{kind}| (dimensionless, log scale; one bar per tensor)", fontsize=TEXT_POINTS
        )
    figure.axes[1].tick_params(labelleft=False)
    _legend_below(figure, _amplitude_legend(), columns=6)
    _title(figure, "How far each layer's values reach, and where its quantizer clips")
    return figure


def _label_layers(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.tick_params(labelsize=TEXT_POINTS, length=0, axis="y")
    axes.tick_params(labelsize=TEXT_POINTS, axis="x")
    for row in range(0, len(layers), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=_BAND_COLOUR, linewidth=0, zorder=0)
    axes.grid(axis="x", color="#D8D8D8", linewidth=0.6, zorder=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_amplitudes(
    axes: Axes, tensors: Sequence[TensorAmplitudes], layers: Sequence[str]
) -> None:
    places = _places(tensors, layers)
    # A log axis has no place for a tensor that is zero throughout.
    drawn = [(row, *place) for row, place in zip(tensors, places, strict=True) if row.largest > 0]
    if not drawn:
        axes.set_xticks([])
        return
    rows, centres, heights = map(list, zip(*drawn, strict=True))
    at = np.array([row.amplitudes_at(BOX_SHARES) for row in rows])
    largest = np.array([row.largest for row in rows])
    axes.hlines(centres, at[:, -1], largest, color=GREY, linewidth=1, zorder=2, label="tail")
    _draw_ticks(axes, largest, centres, heights, BLACK, "largest", width=1.0)
    for index, colour in enumerate(_BOX_COLOURS):
        widths = at[:, index + 1] - at[:, index]
        axes.barh(
            centres, widths, heights, at[:, index], color=colour, zorder=3, label=f"box {index}"
        )
    clips = np.array([row.clip for row in rows])
    _draw_ticks(axes, clips, centres, heights, VERMILION, "clip", width=2.2)
    _scale_amplitudes(axes, float(at[:, 0].min()), float(max(largest.max(), clips.max())))


def _scale_amplitudes(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    low = max(low, high / 10**_MAX_DECADES)
    margin = (high / low) ** 0.03
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    few_decades = high / low < 50
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _places(
    tensors: Sequence[TensorAmplitudes], layers: Sequence[str]
) -> list[tuple[float, float]]:
    """Return the centre and height of every tensor's bar; the tensors of a layer share its row."""
    sizes = {layer: sum(row.layer == layer for row in tensors) for layer in layers}
    seen = dict.fromkeys(layers, 0)
    places = []
    for row in tensors:
        slot = 0.84 / sizes[row.layer]
        centre = layers.index(row.layer) - 0.42 + (seen[row.layer] + 0.5) * slot
        places.append((centre, min(0.8 * slot, 0.4)))
        seen[row.layer] += 1
    return places


def _draw_ticks(
    axes: Axes,
    amplitudes: Floats,
    centres: Sequence[float],
    heights: Sequence[float],
    colour: str,
    label: str,
    *,
    width: float,
) -> None:
    half = np.array(heights) * 0.62
    low, high = np.array(centres) - half, np.array(centres) + half
    axes.vlines(amplitudes, low, high, color=colour, linewidth=width, zorder=4, label=label)


def _amplitude_cells(
    tensors: Sequence[TensorAmplitudes], layers: Sequence[str]
) -> list[tuple[str, str]]:
    cells = []
    for layer in layers:
        own = [row for row in tensors if row.layer == layer]
        if not any(row.largest > 0 for row in own):
            cells.append(("all zero" if own else "", ""))
            continue
        ratio = max(row.tail_ratio for row in own)
        clipped = max(row.clipped_share for row in own)
        cells.append((f"{ratio:.{1 if ratio < 10 else 0}f} {TIMES}", _share_text(clipped)))
    return cells


def _share_text(share: float) -> str:
    if share <= 0:
        return "0"
    return "<0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def _summary(tensors: Sequence[TensorAmplitudes]) -> str:
    if not tensors:
        return "none quantized"
    widest = max(tensors, key=lambda row: row.tail_ratio)
    clipped = len({row.layer for row in tensors if row.clipped_share > 0})
    layers = len({row.layer for row in tensors})
    return f"{clipped or 'none'} of {layers} layers clipped,\nwidest tail in {widest.layer}"


def _amplitude_legend() -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ends = ("median to 99 %", "to 99.9 %", "to 99.99 %")
    handles: list[Artist] = [
        Patch(color=colour, label=end) for colour, end in zip(_BOX_COLOURS, ends, strict=True)
    ]
    handles.append(Line2D([], [], color=GREY, label="to the largest value"))
    handles.append(_tick_handle(VERMILION, "clip"))
    return handles


def _tick_handle(colour: str, label: str) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour, marker="|", linestyle="", markersize=9, markeredgewidth=2.2,
        label=label,
    )  # fmt: skip


def _write_columns(axes: Axes, heads: tuple[str, str], cells: Sequence[tuple[str, str]]) -> None:
    """Write two right-aligned columns of text beside the rows of `axes`."""
    for column in range(len(heads)):
        offset = (36 + 42 * column, 0)
        for row, texts in [(-0.5, heads), *enumerate(cells)]:
            axes.annotate(
                texts[column], (1, row), offset, textcoords="offset points",
                xycoords=axes.get_yaxis_transform(), fontsize=TEXT_POINTS, ha="right",
                va="bottom" if texts is heads else "center", annotation_clip=False,
                color=GREY if texts is heads else BLACK,
            )  # fmt: skip


def _legend_below(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT_POINTS,
        frameon=False,
        columnspacing=1.6,
    )


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=_TITLE_POINTS + 1.5, fontweight="bold")


# --- stage 1 ------------------------------------------------------------------------------------


def figure_of_layer_effects(effects: Sequence[LayerEffect], gamma_points: float) -> Figure:
    """Return the change of WER by each layer alone; hatched where it was decided early."""
    _require_some(effects, "layers")
    figure = new_figure(8, 1.6 + 0.85 * _ROW_INCHES * len(effects))
    axes = figure.subplots()
    _label_layers(axes, [effect.layer for effect in effects])
    for row, effect in enumerate(effects):
        _draw_effect(axes, row, effect)
    axes.axvline(0, color=BLACK, linewidth=0.8, zorder=4)
    axes.axvline(gamma_points, color=BLACK, linewidth=1.2, linestyle="--", zorder=5, label="gamma")
    _scale_effects(axes, effects, gamma_points)
    cells = [
        (_points_text(effect.change_points), f"{100 * effect.evaluated_share:.0f} %")
        for effect in effects
    ]
    _write_columns(axes, ("change", "heard"), cells)
    _legend_below(figure, _effect_legend(effects, gamma_points), columns=3)
    selected = sum(effect.selected for effect in effects)
    verb = "adds" if selected == 1 else "add"
    _title(
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


# --- stage 2 ------------------------------------------------------------------------------------


def figure_of_percentiles(points: Sequence[PercentilePoint], chosen: float) -> Figure:
    """Return WER against the percentile, hollow where only some of the utterances were heard.

    Raises OptionError where `chosen` is none of the percentiles.
    """
    _require_some(points, "percentiles")
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
    _title(figure, f"WER is least, {100 * winner.wer:.2f} %, at p = {winner.percentile:g} %")
    upper.set_title(
        f"{full} of {len(points)} candidates heard every utterance", fontsize=_TITLE_POINTS
    )
    _legend_below(figure, _percentile_legend(points, winner), columns=2)
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
