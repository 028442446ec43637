"""What changed between two reports beyond noise, and what of it is a regression.

Two runs never meet the same machine: another job, another clock. Within a run every round holds the
float model too, so a candidate is judged by its time in units of float's in the same round; what
slowed a whole run down cancels out. Only where there is no float model are seconds compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.benchmarks.report.quantities import (
    WHOLE,
    Quantity,
    Shape,
    is_other_work,
    quantities_of,
    runs_of,
    shapes_of,
    shared_shapes,
)
from speechquant.benchmarks.report.record import FLOAT, QUIET_SHARE, Report, Result
from speechquant.benchmarks.report.statistics import medians_of_rows
from speechquant.core.errors import OptionError, ReportError
from speechquant.core.wer import difference_interval

# Over all shapes of all candidates together one false alarm in twenty comparisons.
_FALSE_ALARMS = 0.05
_RESAMPLES = 20_000
_LEAST_TAIL_DRAWS = 3  # an interval whose end rests on fewer draws says nothing
_MEMORY_NOISE = 0.05  # two runs of one build were up to 4.3 % apart
SAME, BETTER, WORSE, REGRESSION = "same", "better", "worse", "REGRESSION"
UNJUDGED = "not judged"
_PERCENT = 100.0
_BYTES_PER_MB = 1e6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """What may get worse: shares of time and of bytes, and points of WER."""

    slowdown: float = 0.10
    growth: float = 0.10
    wer_points: float = 0.3

    def __post_init__(self) -> None:
        # Not `< 0`, which lets the number nan pass, and with it every regression.
        if not all(bound >= 0 for bound in (self.slowdown, self.growth, self.wer_points)):
            raise OptionError("a bound of a comparison is negative or no number; give 0 or more")


@dataclass(frozen=True)
class Change:
    """One quantity in both reports; `change` is new / old, of a WER the difference in points.

    `low` and `high` are its interval, None where nothing is left to chance.
    """

    candidate: str
    what: str
    unit: str
    old: float
    new: float
    change: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All that could be compared, and what could not."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What got worse beyond noise and beyond its bound."""
        return tuple(change for change in self.changes if change.verdict == REGRESSION)


def compare_reports(old: Report, new: Report, bounds: Bounds | None = None) -> Comparison:
    """Return what changed from `old` to `new`; raises ReportError where nothing is in both."""
    bounds = bounds or Bounds()
    pairs = [(before, after) for before in old.results if (after := _named(new, before.name))]
    if not pairs:
        names = [", ".join(result.name for result in report.results) for report in (old, new)]
        raise ReportError(
            f"the old report is of {names[0]}, the new one of {names[1]}: nothing is in both; "
            "bench folders of the same names"
        )
    tests = sum(
        len(shared_shapes(*pair, quantity)) + 1
        for pair in pairs
        for quantity in quantities_of(*pair)
    )
    false_alarms = _FALSE_ALARMS / max(tests, 1)
    changes: list[Change] = []
    for before, after in pairs:
        changes += _failures(before, after)
        for quantity in quantities_of(before, after):
            changes += _latencies(old, new, (before, after), quantity, bounds, false_alarms)
        changes += _sizes(before, after, bounds)
        if _compares_errors(old, new, before):
            changes += _errors(before, after, bounds)
    notes = [*_notes(old, new), *(note for pair in pairs for note in _missing(*pair))]
    notes += _unjudged(old, new, pairs)
    notes += (note for pair in pairs for note in _other_work(old, new, pair))
    if _chance_apart(old.method.repeats, new.method.repeats) > false_alarms:
        notes.append(
            f"{old.method.repeats} and {new.method.repeats} runs of a shape are too few to judge "
            "single shapes by; the mean of several is judged"
        )
    return Comparison(tuple(changes), tuple(notes))


def _compares_errors(old: Report, new: Report, result: Result) -> bool:
    is_same_count = (old.data.sha256, old.method.normalizer) == (
        new.data.sha256,
        new.method.normalizer,
    )
    writes_tokens = any(cell.tokens for cell in result.cells)
    return is_same_count and not (writes_tokens and _is_other_decoding(old, new))


def _is_other_decoding(old: Report, new: Report) -> bool:
    """Return whether models that write token by token were asked in another way."""
    asked = (old.method.decoding, new.method.decoding)
    return None not in asked and asked[0] != asked[1]


def _named(report: Report, name: str) -> Result | None:
    return next((result for result in report.results if result.name == name), None)


def _notes(old: Report, new: Report) -> Iterator[str]:
    old_names = {result.name for result in old.results}
    new_names = {result.name for result in new.results}
    for name in sorted(old_names - new_names):
        yield f"{name} is in the old report only"
    for name in sorted(new_names - old_names):
        yield f"{name} is in the new report only"
    if (old.machine.processor, old.machine.cores) != (new.machine.processor, new.machine.cores):
        yield f"other machines: {old.machine.processor}, then {new.machine.processor}"
    if _is_other_decoding(old, new):
        yield (
            f"other decoding: {old.method.decoding}, then {new.method.decoding}; the errors of "
            "models that write token by token are not compared"
        )
    if old.method.threads != new.method.threads:
        yield f"other threads: {old.method.threads}, then {new.method.threads}"
    for package in sorted({*old.machine.packages, *new.machine.packages}):
        versions = [report.machine.packages.get(package, "none") for report in (old, new)]
        if versions[0] != versions[1]:
            yield f"{package} was {versions[0]}, is {versions[1]}"
    if old.data.sha256 != new.data.sha256:
        yield "other data, so errors are not compared"
    if old.method.normalizer != new.method.normalizer:
        yield "texts were normalized in another way, so errors are not compared"


def _missing(before: Result, after: Result) -> Iterator[str]:
    """Return what of a candidate is in one of the reports only."""
    for which, one, other in (("old", before, after), ("new", after, before)):
        alone = [
            f"{shape[0]:g} s x {shape[1]}" for shape in shapes_of(one) if not other.cell(*shape)
        ]
        if alone:
            yield f"{one.name} was timed at {', '.join(alone)} in the {which} report only"
        if one.accuracy is not None and other.accuracy is None:
            yield f"{one.name} was scored in the {which} report only"


def _is_quiet(old: Report, new: Report, shape: Shape) -> bool:
    return all(report.others_share(shape) <= QUIET_SHARE for report in (old, new))


def _unjudged(old: Report, new: Report, pairs: list[tuple[Result, Result]]) -> Iterator[str]:
    shapes = dict.fromkeys(shape for pair in pairs for shape in shared_shapes(*pair))
    loud = [f"{shape[0]:g} s x {shape[1]}" for shape in shapes if not _is_quiet(old, new, shape)]
    if loud:
        which = "every shape was" if len(loud) == len(shapes) else f"{', '.join(loud)} were"
        yield (
            f"{which} timed while other programs took more than {QUIET_SHARE:.0%} of the "
            "processors, so no time is judged there; bench again on a quiet machine"
        )


def _other_work(old: Report, new: Report, pair: tuple[Result, Result]) -> Iterator[str]:
    yardsticks = _yardsticks(old, new, pair)
    shapes = [shape for shape in shared_shapes(*pair) if is_other_work(pair, yardsticks, shape)]
    if shapes:
        where = ", ".join(f"{seconds:g} s x {batch}" for seconds, batch in shapes)
        yield (
            f"{pair[0].name}, or float, took other numbers of steps at {where}: latency is not "
            "judged there, first and later tokens are"
        )


def _failures(before: Result, after: Result) -> Iterator[Change]:
    if before.failure is None and after.failure is not None:
        yield Change(after.name, f"fails now: {after.failure}", "", 0, 1, 0, None, None, REGRESSION)


# --- time ---------------------------------------------------------------------------------------


def _latencies(
    old: Report,
    new: Report,
    pair: tuple[Result, Result],
    quantity: Quantity,
    bounds: Bounds,
    false_alarms: float,
) -> Iterator[Change]:
    before, after = pair
    yardsticks = _yardsticks(old, new, pair)
    is_yardstick = yardsticks[0] is before and len(old.results_of(before.model)) > 1
    draws: list[Floats] = []
    logs: list[float] = []
    rng = np.random.default_rng(0)
    unit = "s"
    for shape in shared_shapes(before, after, quantity):
        rows = [
            _times(result, yardstick, shape, quantity)
            for result, yardstick in zip(pair, yardsticks, strict=True)
        ]
        unit = "of float's time" if rows[0].is_relative and rows[1].is_relative else "s"
        first, second = (row.relative if unit != "s" else row.seconds for row in rows)
        medians = float(np.median(first)), float(np.median(second))
        drawn = _drawn_medians(second, rng) / _drawn_medians(first, rng)
        is_fair = _is_quiet(old, new, shape) and not (
            quantity is WHOLE and is_other_work(pair, yardsticks, shape)
        )
        if is_fair:
            draws.append(np.log(drawn))
            logs.append(math.log(medians[1] / medians[0]))
        low, high = _interval(drawn, false_alarms)
        verdict = _verdict(medians[1] / medians[0], low, high, bounds.slowdown)
        is_enough = _chance_apart(len(first), len(second)) <= false_alarms
        is_judged = not is_yardstick and is_enough and is_fair
        yield Change(
            after.name, f"{quantity.name} at {shape[0]:g} s x {shape[1]}", unit, *medians,
            medians[1] / medians[0], low, high, verdict if is_judged else UNJUDGED,
        )  # fmt: skip
    if len(logs) > 1:
        # Single shapes may each be lost in noise where all together are not.
        whole = math.exp(float(np.mean(logs)))
        low, high = _interval(np.exp(np.mean(draws, axis=0)), false_alarms)
        verdict = _verdict(whole, low, high, bounds.slowdown)
        yield Change(
            after.name, f"{quantity.name}, mean of all shapes", unit, 1.0, whole, whole, low, high,
            UNJUDGED if is_yardstick else verdict,
        )  # fmt: skip


@dataclass(frozen=True)
class _Times:
    """Seconds of each run, and the same in units of the float model's run of that round."""

    seconds: Floats
    relative: Floats
    is_relative: bool


def _yardsticks(
    old: Report, new: Report, pair: tuple[Result, Result]
) -> tuple[Result | None, Result | None]:
    """Return the float results of both reports, the new one's on what the old one's ran on."""
    before, after = pair
    first = old.baseline_of(before)
    floats = (
        other
        for other in new.results_of(after.model)
        if first is not None and other.role == FLOAT and other.provider == first.provider
    )
    return first, next(floats, None)


def _times(result: Result, yardstick: Result | None, shape: Shape, quantity: Quantity) -> _Times:
    seconds = np.asarray(runs_of(result, shape, quantity) or (), np.float64) / 1e9
    other = None if yardstick is result else yardstick
    base = None if other is None else runs_of(other, shape, quantity)
    if base is None or len(base) != len(seconds):
        return _Times(seconds, seconds, is_relative=False)
    return _Times(seconds, seconds / (np.asarray(base) / 1e9), is_relative=True)


def _drawn_medians(values: Floats, rng: np.random.Generator) -> Floats:
    drawn = rng.integers(0, len(values), (_RESAMPLES, len(values)))
    return medians_of_rows(values[drawn])


def _chance_apart(first: int, second: int) -> float:
    """Return how often all of so many runs of one build lie above all of the other's, or below.

    No interval drawn from runs is wider than they are, so it raises at least so many false alarms.
    """
    return 2 / math.comb(first + second, first)


def _interval(drawn: Floats, false_alarms: float) -> tuple[float, float]:
    tail = max(false_alarms / 2, _LEAST_TAIL_DRAWS / len(drawn))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _verdict(change: float, low: float, high: float, bound: float) -> str:
    if low <= 1 <= high:
        return SAME
    if change < 1:
        return BETTER
    return REGRESSION if change > 1 + bound else WORSE


# --- bytes and errors ---------------------------------------------------------------------------


def _sizes(before: Result, after: Result, bounds: Bounds) -> Iterator[Change]:
    yield from _bytes(after.name, "size", before.size_bytes, after.size_bytes, bounds, noise=0.0)
    # A process keeps what its largest run took, so peaks are of all shapes that it ran.
    if shapes_of(before) == shapes_of(after):
        peaks = _peak(before), _peak(after)
        yield from _bytes(after.name, "peak memory", *peaks, bounds, noise=_MEMORY_NOISE)


def _bytes(
    name: str, what: str, old: int | None, new: int | None, bounds: Bounds, *, noise: float
) -> Iterator[Change]:
    if not old or new is None:
        return
    change = new / old
    if abs(change - 1) <= noise:
        verdict = SAME
    elif change < 1:
        verdict = BETTER
    else:
        verdict = REGRESSION if change > 1 + bounds.growth else WORSE
    megabytes = old / _BYTES_PER_MB, new / _BYTES_PER_MB
    yield Change(name, what, "MB", *megabytes, change, None, None, verdict)


def _peak(result: Result) -> int | None:
    return max((cell.peak_bytes for cell in result.cells if cell.peak_bytes), default=None)


def _errors(before: Result, after: Result, bounds: Bounds) -> Iterator[Change]:
    if before.accuracy is None or after.accuracy is None:
        return
    first, second = before.accuracy.words, after.accuracy.words
    if not first.reference_length:
        return
    found = difference_interval(first, second)
    points, low, high = (_PERCENT * value for value in (found.difference, found.low, found.high))
    verdict = SAME
    if low > 0:
        verdict = REGRESSION if points > bounds.wer_points else WORSE
    elif high < 0:
        verdict = BETTER
    yield Change(
        after.name, "WER", "%", _PERCENT * first.rate, _PERCENT * second.rate, points, low, high,
        verdict,
    )  # fmt: skip


def comparison_facts(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as plain values."""
    return {**asdict(comparison), "regressions": len(comparison.regressions)}
