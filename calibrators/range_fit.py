"""Ranges fitted to what the whole model says: each moves as long as the outputs differ less.

Other methods judge a range by its tensor or by the products that read it. Which errors the rest of
the network mends, and which it makes worse, shows at its outputs alone. Texts are not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from speechquant.core.errors import CalibrationError
from speechquant.core.files import new_file, read_text
from speechquant.core.progress import OnStep
from speechquant.core.scales import Scale, ScaleTable

# A range is made so much wider or narrower at a time, in two rounds.
STEPS = (1.25, 1.12)
MOST_MOVES = 4  # of an activation in a round
# The activations that are moved: the fewest that add this share of what all add alone.
SHARE_MOVED = 0.95
_DAMAGED = "not what a fit had done; delete it and run again"


class Distance(Protocol):
    """How far the outputs are from the float model's; infinite as soon as it exceeds a bound."""

    def __call__(self, table: ScaleTable, bound: float = math.inf) -> float:
        """Return the distance with activations rounded by `table`."""
        ...


@dataclass(frozen=True)
class Fit:
    """A table whose ranges are fitted, the distances before and after, and what was moved."""

    table: ScaleTable
    before: float
    after: float
    moved: tuple[str, ...]


def fitted(
    table: ScaleTable, distance: Distance, saved: Path, on_step: OnStep | None = None
) -> Fit:
    """Move the ranges of the activations that err most, one after the other.

    The file `saved` keeps what is done after each of them; a run that finds it goes on from there.
    It must belong to the same model, table and clips. Raises CalibrationError.
    """
    state = _read(saved) if saved.is_file() else _begun(table, distance, saved, on_step)
    places = [(step, name) for step in STEPS for name in state.moved]
    rows = {**table.tensors, **state.rows}
    nearest = state.nearest
    for done, (step, name) in enumerate(places):
        if done >= state.done:
            rows, nearest = _moved(replace(table, tensors=rows), name, step, distance, nearest)
            found = {each: rows[each] for each in state.moved}
            _write(replace(state, rows=found, nearest=nearest, done=done + 1), saved)
        if on_step is not None:
            measured = len(table.tensors)
            on_step(measured + done + 1, measured + len(places))
    return Fit(replace(table, tensors=rows), state.before, nearest, state.moved)


@dataclass(frozen=True)
class _State:
    moved: tuple[str, ...]
    before: float
    nearest: float
    done: int
    rows: Mapping[str, Scale]


def _begun(table: ScaleTable, distance: Distance, saved: Path, on_step: OnStep | None) -> _State:
    before, alone = distance(table), dict[str, float]()
    for name, row in table.tensors.items():
        alone[name] = distance(replace(table, tensors={name: row}))
        if on_step is not None:
            on_step(len(alone), (1 + len(STEPS)) * len(table.tensors))
    state = _State(tuple(_most_harmful(alone)), before, before, 0, {})
    _write(state, saved)
    return state


def _most_harmful(alone: Mapping[str, float]) -> Iterator[str]:
    """Yield names, the worst first, until they add SHARE_MOVED of what all add.

    What the least harmful one adds is the weights' part.
    """
    least = min(alone.values(), default=0.0)
    left = SHARE_MOVED * sum(value - least for value in alone.values())
    for name in sorted(alone, key=lambda name: -alone[name]):
        if left <= 0:
            return
        left -= alone[name] - least
        yield name


def _moved(
    table: ScaleTable, name: str, step: float, distance: Distance, nearest: float
) -> tuple[dict[str, Scale], float]:
    """Return the rows with an activation's range where the outputs are nearest, and how near."""
    rows = dict(table.tensors)
    for _ in range(MOST_MOVES):
        best = None
        for row in _neighbours(rows[name], step, table):
            found = distance(replace(table, tensors={**rows, name: row}), nearest)
            if found < nearest:
                best, nearest = row, found
        if best is None:
            break
        rows[name] = best
    return rows, nearest


def _neighbours(row: Scale, step: float, table: ScaleTable) -> Iterator[Scale]:
    """Yield a narrower and a wider range; an asymmetric one also with its zero one level off."""
    highest = 0 if table.symmetric else 2**table.bits.activations - 1
    for factor in (1 / step, step):
        # Zero stays at its level, or the ends stay in proportion.
        for zero_point in sorted({row.zero_point, round(row.zero_point / factor)}):
            yield replace(
                row, scale=row.scale * factor, amax=row.amax * factor,
                zero_point=min(zero_point, highest),
            )  # fmt: skip
    for zero_point in (row.zero_point - 1, row.zero_point + 1):
        if 0 <= zero_point <= highest:
            yield replace(row, zero_point=zero_point)


def _write(state: _State, saved: Path) -> None:
    with new_file(saved, force=True) as partial:
        partial.write_text(json.dumps(asdict(state)), encoding="utf-8")


def _read(saved: Path) -> _State:
    try:
        document: dict[str, Any] = json.loads(read_text(saved, CalibrationError, _DAMAGED))
        rows = {name: Scale(**row) for name, row in document.pop("rows").items()}
        return _State(tuple(document.pop("moved")), rows=rows, **document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CalibrationError(f"{saved}: {_DAMAGED}") from error
