"""What a command shows: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from speechquant.core.progress import OnStep
from speechquant.pipeline.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console

# Lines in a file or a pipe are not broken.
_UNBROKEN_COLUMNS = 10_000


@cache
def _terminal() -> Console:
    """Return the one console of stderr: logs on it go above a bar that is drawn on it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def show_logs(level: int) -> None:
    """Send what the library logs from `level` on to stderr."""
    logger = logging.getLogger("speechquant")
    logger.handlers = [_log_handler()]
    logger.setLevel(level)


def _log_handler() -> logging.Handler:
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        handler = RichHandler(
            console=_terminal(),
            highlighter=NullHighlighter(),
            show_time=False,
            show_level=False,
            show_path=False,
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def print_json(document: Any) -> None:
    """Print the one JSON document of a command that was called with --json."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings, text to the left and numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column, heading in enumerate(headings):
        numeric = bool(rows) and all(_is_numeric(row[column]) for row in rows)
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    width = None if sys.stdout.isatty() else _UNBROKEN_COLUMNS
    console = Console(width=width, highlight=False)
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        print(line.rstrip())


def _is_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:2] in {"-0", "+0"}


def megabytes(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:.1f} MB"


def time_left(seconds: float | None) -> str:
    """Return what a bar says of the time that the work goes on, nothing where it is not known."""
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


@contextmanager
def progress(what: str) -> Iterator[OnStep | None]:
    """Yield a callback that moves a bar on stderr, None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
    )
    from rich.text import Text

    pace = Pace()

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(time_left(pace.seconds_left), style="progress.remaining")

    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
    )
    with Progress(
        *columns,
        console=_terminal(),
        transient=True,
        # Lines on the same terminal go above the bar. What a command prints to a file must not end
        # up in the bar's console.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(what, total=None)

        def on_step(done: float, total: int) -> None:
            pace.step(done, total)
            bar.update(task, completed=done, total=total)

        yield on_step
