"""Ranges fitted to what the whole model says: each moves as long as the outputs differ less.

Other methods judge a range by its tensor or by the products that read it. Which errors the rest of
the network mends, and which it makes worse, shows at its outputs alone. Texts are not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from speechquant.core.errors import CalibrationError
from speechquant.core.files import new_file, read_text
from speechquant.core.plain import parsed, record_of
from speechquant.core.progress import OnStep
from speechquant.core.scales import Scale, ScaleTable

# A range is made so much wider or narrower at a time, in two rounds.
STEPS = (1.25, 1.12)
MOST_MOVES = 4  # of an activation in a round
# The activations that are moved: the fewest that add this share of what all add alone.
SHARE_MOVED = 0.95
# With more bits no WER that was measured became lower.
MOST_BITS = 6
_MEND = "delete it and run again"


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


@dataclass(frozen=True)
class _State:
    """What is done so far: distances with no activation rounded, all and each alone; moves."""

    weights_alone: float
    before: float
    alone: Mapping[str, float] = field(default_factory=dict)
    moves_done: int = 0
    rows: Mapping[str, Scale] = field(default_factory=dict)
    nearest: float = math.inf


def fitted(
    table: ScaleTable, distance: Distance, saved: Path, on_step: OnStep | None = None
) -> Fit:
    """Move the ranges of the activations that err most, one after the other.

    The file `saved` keeps what is done after each of them; a run that finds it goes on from there.
    It must belong to the same model, table and clips. Raises CalibrationError.
    """
    state = _read(saved, table) if saved.is_file() else _begun(table, distance)
    most = len(STEPS) * len(table.tensors)
    for name, row in table.tensors.items():
        if name not in state.alone:
            found = distance(replace(table, tensors={name: row}))
            state = replace(state, alone={**state.alone, name: found})
            _write(state, saved)
        if on_step is not None:
            on_step(len(state.alone), len(table.tensors) + most)
    moved = _most_harmful(state)
    places = [(step, name) for step in STEPS for name in moved]
    for done, (step, name) in enumerate(places, start=1):
        if done > state.moves_done:
            now = replace(table, tensors={**table.tensors, **state.rows})
            row, nearest = _moved(now, name, step, distance, state.nearest)
            rows = {**state.rows, name: row}
            state = replace(state, rows=rows, nearest=nearest, moves_done=done)
            _write(state, saved)
        if on_step is not None:
            on_step(len(table.tensors) + done, len(table.tensors) + len(places))
    rows = {**table.tensors, **state.rows}
    return Fit(replace(table, tensors=rows), state.before, state.nearest, moved)


def _begun(table: ScaleTable, distance: Distance) -> _State:
    before = distance(table)
    if not math.isfinite(before):
        raise CalibrationError(
            "the quantized model gives values that are no numbers: calibrate with other audio, or "
            "with more bits"
        )
    return _State(distance(replace(table, tensors={})), before, nearest=before)


def _most_harmful(state: _State) -> tuple[str, ...]:
    """Return the worst first, until they add SHARE_MOVED of what all add to the weights' errors."""
    added = {name: max(0.0, found - state.weights_alone) for name, found in state.alone.items()}
    left = SHARE_MOVED * sum(added.values())
    chosen = list[str]()
    for name in sorted(added, key=lambda name: -added[name]):
        if left > 0:
            chosen.append(name)
            left -= added[name]
    return tuple(chosen)


def _moved(
    table: ScaleTable, name: str, step: float, distance: Distance, nearest: float
) -> tuple[Scale, float]:
    """Return an activation's scale under which the outputs are nearest, and how near."""
    best = table.tensors[name]
    for _ in range(MOST_MOVES):
        start = best
        for row in _neighbours(start, step, table):
            found = distance(replace(table, tensors={**table.tensors, name: row}), nearest)
            if found < nearest:
                best, nearest = row, found
        if best == start:
            break
    return best, nearest


def _neighbours(row: Scale, step: float, table: ScaleTable) -> Iterator[Scale]:
    """Yield a narrower and a wider range; an asymmetric one also with its zero one level off."""
    if table.symmetric:
        for factor in (1 / step, step):
            yield replace(row, scale=row.scale * factor, amax=row.amax * factor)
        return
    highest = 2**table.bits.activations - 1
    places = [(1.0, row.zero_point - 1), (1.0, row.zero_point + 1)]
    for factor in (1 / step, step):
        # Both ends move, or the upper one alone.
        places += [(factor, zero) for zero in {row.zero_point, round(row.zero_point / factor)}]
    for factor, zero_point in sorted(places):
        if 0 <= zero_point <= highest:
            scale = row.scale * factor
            amax = max(zero_point, highest - zero_point) * scale
            yield replace(row, scale=scale, amax=amax, zero_point=zero_point)


def _write(state: _State, saved: Path) -> None:
    with new_file(saved, force=True) as partial:
        partial.write_text(json.dumps(asdict(state)), encoding="utf-8")


def _read(saved: Path, table: ScaleTable) -> _State:
    try:
        state = record_of(_State, parsed(read_text(saved, CalibrationError, _MEND)))
        unknown = (state.alone.keys() | state.rows.keys()) - table.tensors.keys()
        if unknown:
            raise ValueError(f"it names {min(unknown)}, which the table does not")
    except ValueError as error:
        raise CalibrationError(f"{saved}: not what a fit had done ({error}); {_MEND}") from error
    return state
