"""What all pictures share: colours, sizes, empty figures, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.errors import MissingPackageError, OptionError
from speechquant.core.files import new_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
SUFFIXES = (".png", ".svg")

# Okabe and Ito's palette, which stays apart under every common colour blindness.
BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
_BAND_COLOUR = "#F4F4F4"
TEXT_POINTS, TITLE_POINTS = 8.0, 9.5
ROW_INCHES = 0.29
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


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


def require_some(records: Sequence[object], what: str) -> None:
    """Raise OptionError where there is nothing to draw."""
    if not records:
        raise OptionError(f"no {what} to draw; give at least one")


def label_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Give every layer a row of `axes`, the first one on top."""
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.tick_params(labelsize=TEXT_POINTS, length=0, axis="y")
    axes.tick_params(labelsize=TEXT_POINTS, axis="x")
    for row in range(0, len(layers), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=_BAND_COLOUR, linewidth=0, zorder=0)
    axes.grid(axis="x", color="#D8D8D8", linewidth=0.6, zorder=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def write_columns(axes: Axes, heads: tuple[str, str], cells: Sequence[tuple[str, str]]) -> None:
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


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Write a legend below the axes."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT_POINTS,
        frameon=False,
        columnspacing=1.6,
    )


def write_title(figure: Figure, text: str) -> None:
    """Write what the picture shows above it."""
    figure.suptitle(text, fontsize=TITLE_POINTS + 1.5, fontweight="bold")
