"""What a command shows: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from speechquant.core.progress import OnStep

_SPEED_SECONDS = 600.0


def show_logs(level: int) -> None:
    """Send what the library logs from `level` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("speechquant")
    logger.handlers = [handler]
    logger.setLevel(level)


def print_json(document: Any) -> None:
    """Print the one JSON document of a command that was called with --json."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings, text to the left and numbers to the right."""
    columns = list(zip(*([headings, *rows]), strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [bool(rows) and all(_is_numeric(cell) for cell in column[1:]) for column in columns]
    for row in [headings, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, is_number, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _is_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:2] in {"-0", "+0"}


def megabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:.1f} MB"


@contextmanager
def progress(what: str) -> Iterator[OnStep | None]:
    """Yield a callback that moves a bar on stderr, None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        # A step may take a minute, as a chunk of a long clip does in a large model.
        speed_estimate_period=_SPEED_SECONDS,
        # Lines on the same terminal go above the bar. What a command prints to a file must not end
        # up in the bar's console.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
