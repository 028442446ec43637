"""What balancing the channels of each activation does to the error of its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.benchmarks.pictures.style import (
    BLUE,
    TEXT_POINTS,
    VERMILION,
    legend_below,
    new_figure,
    require_some,
    save_figure,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_ERROR = 1e-6  # of an activation that loses nothing, which a log axis has no place for
_INCHES_FOR_EACH = 0.11
_MOST_TICKS = 45


@dataclass(frozen=True)
class ActivationErrors:
    """The relative error of an activation's products before and after; it belongs to `layer`."""

    layer: str
    before: float
    after: float


def draw_balance(model: str, errors: Sequence[ActivationErrors], path: Path) -> None:
    """Write `figure_of_balance` to a .png or .svg, replacing what is there."""
    save_figure(lambda: figure_of_balance(model, errors), path)


def figure_of_balance(model: str, errors: Sequence[ActivationErrors]) -> Figure:
    """Return two bars for each activation, in the order given; a layer is named where it begins."""
    from matplotlib.patches import Patch

    require_some(errors, "activations")
    figure = new_figure(max(7.0, min(16.0, 2 + _INCHES_FOR_EACH * len(errors))), 4.6)
    axes = figure.subplots()
    places = range(len(errors))
    for shift, values, colour in (
        (-0.2, [one.before for one in errors], VERMILION),
        (0.2, [one.after for one in errors], BLUE),
    ):
        heights = [max(value, _LEAST_ERROR) for value in values]
        axes.bar([place + shift for place in places], heights, width=0.4, color=colour)
    axes.set_yscale("log")
    starts = [
        place for place in places if not place or errors[place].layer != errors[place - 1].layer
    ]
    starts = starts[:: -(-len(starts) // _MOST_TICKS)]
    axes.set_xticks(starts, [errors[place].layer for place in starts], rotation=90)
    axes.tick_params(labelsize=TEXT_POINTS)
    axes.set_xlim(-0.8, len(errors) - 0.2)
    axes.set_ylabel("relative error of the products", fontsize=TEXT_POINTS)
    axes.grid(axis="y", color="#D8D8D8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Patch(color=VERMILION, label="one scale for all channels as they are"),
        Patch(color=BLUE, label="channels balanced"),
    ]
    legend_below(figure, handles, columns=2)
    write_title(figure, f"{model}: each activation alone in 8 bits, before and after balancing")
    return figure
