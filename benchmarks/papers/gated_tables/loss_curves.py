"""Losses of trainings by step, in one picture: `... gated_tables.loss_curves RUN...`.

RUN... are folders of `students.distil`: a run that was killed and went on beside an unbroken one,
or one with gates beside one without. Prints how far each is from the first, and writes
loss-curves.png to --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.benchmarks.papers.gated_tables.models import folders_by_name
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.benchmarks.pictures.style import (
    BLACK,
    BLUE,
    GREY,
    TEXT_POINTS,
    VERMILION,
    legend_below,
    new_figure,
    save_figure,
    write_title,
)
from speechquant.core.errors import OptionError, told_in_one_line
from speechquant.training.run import LOG_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "loss-curves.png"
_COLOURS = (BLUE, VERMILION, GREY, BLACK)

Losses = Mapping[int, float]


def read_losses(run: Path) -> Losses:
    """Return the loss of each noted step; raises OptionError where there is none."""
    try:
        lines = (run / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"{run}: no {LOG_FILE}; give a folder that a training wrote") from error
    rows = [json.loads(line) for line in lines]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    if not losses:
        raise OptionError(f"{run}: its log has no loss; give a folder of students.distil")
    return losses


def farthest(losses: Losses, others: Losses) -> float:
    """Return the largest difference at a step that both have noted; raises OptionError for none."""
    common = losses.keys() & others.keys()
    if not common:
        raise OptionError("the runs have no step in common; give them the same --save-every")
    return max(abs(losses[step] - others[step]) for step in common)


def figure_of_losses(runs: Mapping[str, Losses]) -> Figure:
    """Return a line for each run; later ones are drawn thinner, so that equal ones all show."""
    figure = new_figure(5.4, 3.4)
    axes = figure.subplots()
    handles = []
    for index, (name, losses) in enumerate(runs.items()):
        handles += axes.plot(
            list(losses), list(losses.values()), label=name, color=_COLOURS[index % len(_COLOURS)],
            linewidth=max(1.0, 4.5 - 3 * index), marker="o", markersize=2.5,
        )  # fmt: skip
    axes.set_xlabel("step", fontsize=TEXT_POINTS)
    axes.set_ylabel("loss", fontsize=TEXT_POINTS)
    axes.tick_params(labelsize=TEXT_POINTS)
    axes.grid(color="#D8D8D8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, handles, columns=3)
    write_title(figure, "Loss by step")
    return figure


def show(folders: Sequence[Path], out: Path) -> None:
    """Print the table and write the picture."""
    runs = {name: read_losses(run) for name, run in folders_by_name(folders).items()}
    first, *_ = runs.values()
    print_heading("Losses", "run", "steps", "last loss", "farthest from the first run")
    for name, losses in runs.items():
        last = max(losses)
        print_row(name, str(last), f"{losses[last]:.4f}", f"{farthest(first, losses):.4f}")
    out.mkdir(parents=True, exist_ok=True)
    save_figure(lambda: figure_of_losses(runs), out / PICTURE)


@told_in_one_line()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings")
    parser.add_argument("--out", type=Path, default=Path("build/loss-curves"))
    options = parser.parse_args()
    show(options.runs, options.out)


if __name__ == "__main__":
    main()
