"""How far a quantized bundle's values reach, and where its quantizers clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from speechquant.benchmarks.pictures.style import (
    BLACK,
    GREY,
    ROW_INCHES,
    TEXT_POINTS,
    TIMES,
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
from speechquant.core.errors import CalibrationError

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

_BOX_COLOURS = ("#08519C", "#6BAED6", "#C6DBEF")
# Medians of nearly dead tensors would push the tails, which matter, to the edge.
_MAX_DECADES = 6.0


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


def draw_distributions(rows: Sequence[TensorAmplitudes], path: Path) -> None:
    """Write `figure_of_distributions` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_distributions(rows), path)


def figure_of_distributions(rows: Sequence[TensorAmplitudes]) -> Figure:
    """Return activations beside weights: a row per layer, in it a bar per tensor with its clip.

    Layers and tensors stand in the order given.
    """
    require_some(rows, "tensors")
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = new_figure(11.5, 1.6 + ROW_INCHES * len(layers))
    panels: tuple[tuple[Kind, str], ...] = (("activation", "Activations"), ("weight", "Weights"))
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        tensors = [row for row in rows if row.kind == kind]
        label_layers(axes, layers)
        _draw_amplitudes(axes, tensors, layers)
        write_columns(axes, ("max /\n99.9 %", "clipped"), _amplitude_cells(tensors, layers))
        axes.set_title(f"{title}: {_summary(tensors)}", fontsize=TITLE_POINTS, loc="left")
        axes.set_xlabel(
            f"|{kind}| (dimensionless, log scale; one bar per tensor)", fontsize=TEXT_POINTS
        )
    figure.axes[1].tick_params(labelleft=False)
    legend_below(figure, _amplitude_legend(), columns=6)
    write_title(figure, "How far each layer's values reach, and where its quantizer clips")
    return figure


def _draw_amplitudes(
    axes: Axes, tensors: Sequence[TensorAmplitudes], layers: Sequence[str]
) -> None:
    all_places = _places(tensors, layers)
    # A log axis has no place for a tensor that is zero throughout.
    drawn = [
        (row, place) for row, place in zip(tensors, all_places, strict=True) if row.largest > 0
    ]
    if not drawn:
        axes.set_xticks([])
        return
    rows = [row for row, _ in drawn]
    places = [place for _, place in drawn]
    centres, heights = zip(*places, strict=True)
    at = np.array([row.amplitudes_at(BOX_SHARES) for row in rows])
    largest = np.array([row.largest for row in rows])
    axes.hlines(centres, at[:, -1], largest, color=GREY, linewidth=1, zorder=2, label="tail")
    _draw_ticks(axes, largest, places, BLACK, "largest", width=1.0)
    for index, colour in enumerate(_BOX_COLOURS):
        widths = at[:, index + 1] - at[:, index]
        axes.barh(
            centres, widths, heights, at[:, index], color=colour, zorder=3, label=f"box {index}"
        )
    clips = np.array([row.clip for row in rows])
    _draw_ticks(axes, clips, places, VERMILION, "clip", width=2.2)
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
    places: Sequence[tuple[float, float]],
    colour: str,
    label: str,
    *,
    width: float,
) -> None:
    centres, heights = np.array(places).T
    half = 0.62 * heights
    low, high = centres - half, centres + half
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
