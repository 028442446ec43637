"""The gated-attention paper's two pictures: outliers by dimension, and what one head does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from speechquant.benchmarks.pictures.style import BLUE, TEXT_POINTS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Shares = Sequence[tuple[int, float]]  # of all outliers, by hidden dimension


class Head(Protocol):
    """One head for one clip: probabilities [queries, keys], values and product [.., dimensions]."""

    @property
    def probabilities(self) -> NDArray[np.float32]: ...

    @property
    def values(self) -> NDArray[np.float32]: ...

    @property
    def mixed(self) -> NDArray[np.float32]: ...


def draw_outlier_dimensions(panels: Mapping[str, Shares], path: Path) -> None:
    """Draw the dimensions with the largest shares of outliers, a panel for each module's title."""
    save_figure(lambda: _figure_of_dimensions(panels), path)


def draw_attention(title: str, head: Head, path: Path) -> None:
    """Draw a head's probabilities, values, and the product of the two."""
    save_figure(lambda: _figure_of_head(title, head), path)


def _figure_of_dimensions(panels: Mapping[str, Shares]) -> Figure:
    figure = new_figure(6.0 * len(panels), 3.0)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, shares) in zip(row, panels.items(), strict=True):
        percents = [100 * share for _, share in shares]
        axes.bar(range(len(shares)), percents, color=BLUE)
        names = [str(index) for index, _ in shares]
        axes.set_xticks(range(len(shares)), names, fontsize=TEXT_POINTS)
        axes.set_xlabel("hidden dimension")
        axes.set_ylabel("share of all outliers (%)")
        axes.set_title(title if shares else f"{title}: none", fontsize=TEXT_POINTS + 1)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure_of_head(title: str, head: Head) -> Figure:
    figure = new_figure(9.0, 3.2)
    panels = (
        ("probabilities", head.probabilities, "key", "query"),
        ("values", head.values, "dimension", "key"),
        ("probabilities \N{MULTIPLICATION SIGN} values", head.mixed, "dimension", "query"),
    )
    for axes, (name, matrix, across, down) in zip(figure.subplots(1, 3), panels, strict=True):
        is_share = name == "probabilities"
        reach = float(np.abs(matrix).max()) or 1.0
        picture = axes.imshow(
            matrix,
            aspect="auto",
            interpolation="nearest",
            cmap="Blues" if is_share else "RdBu_r",
            vmin=0.0 if is_share else -reach,
            vmax=1.0 if is_share else reach,
        )
        axes.set_title(name, fontsize=TEXT_POINTS + 1)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        figure.colorbar(picture, ax=axes)
    figure.suptitle(title, fontsize=TEXT_POINTS + 2)
    return figure
