"""What two reports are compared by: which times both of them have of a candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speechquant.benchmarks.report.record import Cell, Result, Work

Shape = tuple[float, int]  # seconds of each clip, clips


@dataclass(frozen=True)
class Quantity:
    """Something that is timed, None of a cell that has no such thing."""

    name: str
    of: Callable[[Cell], tuple[int, ...] | None]


WHOLE = Quantity("latency", lambda cell: cell.whole)
QUANTITIES = (
    WHOLE,
    Quantity("first token", lambda cell: cell.tokens.first_token if cell.tokens else None),
    Quantity("each later token", lambda cell: cell.tokens.later_token if cell.tokens else None),
)


def shapes_of(result: Result) -> list[Shape]:
    """Return the shapes that a candidate was timed on."""
    return [(cell.seconds, cell.batch) for cell in result.cells]


def runs_of(result: Result, shape: Shape, quantity: Quantity) -> tuple[int, ...] | None:
    """Return the nanoseconds of each run on a shape, None where there are none."""
    cell = result.cell(*shape)
    return None if cell is None else quantity.of(cell)


def shared_shapes(before: Result, after: Result, quantity: Quantity = WHOLE) -> list[Shape]:
    """Return the shapes on which both reports have this quantity."""
    return [
        shape
        for shape in shapes_of(before)
        if runs_of(before, shape, quantity) and runs_of(after, shape, quantity)
    ]


def quantities_of(before: Result, after: Result) -> list[Quantity]:
    """Return what both reports have of a candidate."""
    return [
        quantity
        for quantity in QUANTITIES
        if quantity is WHOLE or shared_shapes(before, after, quantity)
    ]


def _work(result: Result | None, shape: Shape) -> Work | None:
    """Return the work of the runs, None where none is counted."""
    tokens = cell.tokens if result is not None and (cell := result.cell(*shape)) else None
    return None if tokens is None else tokens.work


def is_other_work(
    pair: tuple[Result, Result], yardsticks: tuple[Result | None, Result | None], shape: Shape
) -> bool:
    """Return whether a model, or what it is measured by, did other work before.

    What one of the reports does not have measures nothing.
    """
    works = [(_work(before, shape), _work(after, shape)) for before, after in (pair, yardsticks)]
    return any(
        before is not None and after is not None and before != after for before, after in works
    )
