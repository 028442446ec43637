"""Rows of Markdown tables, as lines and as print-outs, and what their cells say of word errors."""

from __future__ import annotations

import sys

from speechquant.core.wer import DifferenceInterval
from speechquant.recipes.experiment import Scored


def markdown_row(*cells: object) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def heading_rows(*cells: str) -> list[str]:
    """Return the first two rows of a table."""
    return [markdown_row(*cells), "|---" * len(cells) + "|"]


def cell(scored: Scored) -> str:
    """Return a WER with the interval of its difference from float, in points."""
    return f"{100 * scored.words.rate:.2f} ({points_of(scored.drop)})"


def points_of(change: DifferenceInterval) -> str:
    """Return a difference of rates and its interval, in points."""
    low, high = 100 * change.low, 100 * change.high
    return f"{100 * change.difference:+.2f}: {low:+.2f} to {high:+.2f}"


def change_cell(change: DifferenceInterval) -> str:
    """Return a difference of rates as a cell of its own, in points."""
    low, high = 100 * change.low, 100 * change.high
    return f"{100 * change.difference:+.2f} ({low:+.2f} to {high:+.2f})"


def print_row(*cells: object) -> None:
    """Print one row of a table."""
    sys.stdout.write(f"{markdown_row(*cells)}\n")
    sys.stdout.flush()


def print_heading(title: str, *columns: str) -> None:
    """Print a section's title and its table's first two rows."""
    sys.stdout.write("\n".join([f"\n## {title}\n", *heading_rows(*columns), ""]))
    sys.stdout.flush()
