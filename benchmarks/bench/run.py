"""A whole bench, from candidates to a report: `run_bench(plan)`.

Every candidate runs in a process of its own, and a round runs each of them once, so that what the
machine does meanwhile meets all alike. What is measured is written down at once: a bench that was
killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from speechquant.benchmarks.bench.candidates import Candidate
from speechquant.benchmarks.bench.journal import Journal
from speechquant.benchmarks.bench.latency import WARM_UP_RULE, Runs, time_interleaved
from speechquant.benchmarks.bench.machine import this_machine
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.process import (
    CandidateError,
    CandidateProcess,
    UnsuitableError,
)
from speechquant.benchmarks.bench.timing_audio import TimingAudio
from speechquant.benchmarks.report.record import (
    QUIET_SHARE,
    Cell,
    DataFacts,
    Method,
    Report,
    Result,
    Skipped,
    cell_of,
    plain_result,
    result_of,
)
from speechquant.core.audio import Waveform, audio_seconds
from speechquant.core.manifests import clip_key, data_key
from speechquant.core.progress import OnStep

log = logging.getLogger(__name__)

LOADS = 3
PROFILED_SECONDS = 10.0
JOURNAL_FILE = "measured.jsonl"


def run_bench(plan: Plan, on_step: OnStep | None = None) -> Report:
    """Measure all that the plan asks for; a candidate that fails is reported with its reason.

    Raises AudioError where the data cannot be read, and StorageError.
    """
    keys = [clip_key(clip) for clip in plan.clips]
    longest = max(seconds * batch for seconds, batch in plan.shapes)
    reel = TimingAudio(plan.clips, plan.candidates[0].sample_rate_hz, longest)
    steps = _Steps(on_step, len(plan.candidates) + len(plan.shapes))
    with Journal(plan.work / JOURNAL_FILE, _key_of(plan, keys)) as journal:
        results = {}
        for candidate in plan.candidates:
            found = journal.get(candidate.name)
            if found is None:
                log.info("%s: loading, errors, kernels", candidate.name)
                found = plain_result(_measured_alone(candidate, plan, reel))
                journal.add(candidate.name, found)
            results[candidate.name] = result_of(found)
            steps.next()
        _time_shapes(plan, reel, results, journal, steps)
    measured = [cell for result in results.values() for cell in result.cells]
    report = Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=this_machine(),
        method=Method(
            plan.threads,
            plan.lengths_seconds,
            plan.batches,
            plan.repeats,
            WARM_UP_RULE,
            plan.pause_seconds,
            plan.normalizer,
            plan.decoding,
        ),
        data=DataFacts(
            name=plan.data,
            sha256=data_key(keys),
            clips=len(plan.clips),
            seconds=sum(audio_seconds(clip.audio) for clip in plan.clips),
            has_text=plan.has_text,
        ),
        results=tuple(results[candidate.name] for candidate in plan.candidates),
        notes=(*plan.notes, *_notes(plan), *_memory_notes(measured)),
    )
    return replace(report, notes=(*report.notes, *_unquiet(report, plan.shapes)))


class _Steps:
    """Counts the steps of a bench for a bar."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step, self._done, self._total = on_step, 0, total

    def next(self) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._total)


def _key_of(plan: Plan, clip_keys: Sequence[str]) -> str:
    """Return a hash of all that what is measured depends on."""
    facts = {
        "candidates": [[one.name, one.sha256, one.provider] for one in plan.candidates],
        "decoding": [one.decoding and asdict(one.decoding) for one in plan.candidates],
        "clips": list(clip_keys),
        "method": [plan.repeats, plan.threads, plan.normalizer, plan.pause_seconds],
        "errors": plan.counts_errors,
        "machine": asdict(this_machine()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _notes(plan: Plan) -> Iterator[str]:
    if not plan.counts_errors:
        yield "Latency only: errors were not asked for."
    elif not plan.has_text:
        yield f"Latency only: {plan.data} does not say what is said, so errors cannot be counted."
    if len(plan.shapes) < len(plan.batches) * len(plan.lengths_seconds):
        yield (
            f"A batch is run where it holds at most {plan.largest_call_seconds:g} s of audio, "
            "about what a recognizer puts into one call."
        )


def _memory_notes(cells: Sequence[Cell]) -> Iterator[str]:
    if cells and all(cell.peak_bytes is None for cell in cells):
        yield "Peak memory was not measured: that is done on Linux alone."


def _unquiet(report: Report, shapes: Sequence[tuple[float, int]]) -> Iterator[str]:
    shares = {shape: report.others_share(shape) for shape in shapes}
    loud = {shape: share for shape, share in shares.items() if share > QUIET_SHARE}
    if loud:
        names = ", ".join(f"{_name_of(shape)} ({share:.0%})" for shape, share in loud.items())
        yield (
            f"Other programs took more than {QUIET_SHARE:.0%} of the processors while these shapes "
            f"were timed: {names}. Their times, and ratios of them, say little."
        )


# --- a candidate alone --------------------------------------------------------------------------


def _blank_result(candidate: Candidate) -> Result:
    return Result(
        name=candidate.name,
        model=candidate.model,
        role=candidate.role,
        source=candidate.source.name,
        how=candidate.how,
        provider=candidate.provider,
        precision=candidate.precision,
        size_bytes=candidate.size_bytes,
        profile=candidate.built_profile,
        search=candidate.search,
    )


def _measured_alone(candidate: Candidate, plan: Plan, reel: TimingAudio) -> Result:
    """Return how long a candidate loads, what it gets wrong and where its time goes."""
    result = _blank_result(candidate)
    try:
        for load in range(LOADS):
            with CandidateProcess(candidate, plan.threads) as process:
                opened = process.open()
                loads = (*result.load, opened.nanoseconds)
                result = replace(result, load=loads, provider=opened.provider, how=opened.how)
                if load == LOADS - 1:
                    result = _scored(result, process, plan)
        # A length that it does not take is told when the lengths are timed.
        with CandidateProcess(candidate, plan.threads) as process, suppress(UnsuitableError):
            # Without opening it first: a profile is made in a session of its own.
            profile = process.profile(reel.pieces(_profiled_seconds(plan), 1))
            result = replace(result, profile=profile)
    except (CandidateError, UnsuitableError) as error:
        log.warning("warning: %s: %s", candidate.name, error)
        result = replace(result, failure=str(error))
    return result


def _scored(result: Result, process: CandidateProcess, plan: Plan) -> Result:
    if not (plan.counts_errors and plan.has_text):
        return result
    try:
        return replace(result, accuracy=process.evaluate(plan.clips, plan.normalizer))
    except UnsuitableError as error:
        log.warning("warning: %s is not scored: %s", result.name, error)
        return replace(result, unscored=str(error))


def _profiled_seconds(plan: Plan) -> float:
    fitting = [seconds for seconds in plan.lengths_seconds if seconds <= PROFILED_SECONDS]
    return max(fitting, default=min(plan.lengths_seconds))


# --- all of them, in turn -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """What came of one candidate on one shape: times, or why there are none."""

    cell: Cell | None = None
    skipped: Skipped | None = None
    failure: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> _Outcome:
        cell, skipped = row["cell"], row["skipped"]
        return cls(
            None if cell is None else cell_of(cell),
            None if skipped is None else Skipped(**skipped),
            row["failure"],
        )

    def added_to(self, result: Result) -> Result:
        return replace(
            result,
            cells=result.cells if self.cell is None else (*result.cells, self.cell),
            skipped=result.skipped if self.skipped is None else (*result.skipped, self.skipped),
            failure=self.failure or result.failure,
        )


def _time_shapes(
    plan: Plan, reel: TimingAudio, results: dict[str, Result], journal: Journal, steps: _Steps
) -> None:
    """Add to the results what every candidate takes for each shape."""
    with ExitStack() as stack:
        timing = _Timing(plan, stack)
        for shape in plan.shapes:
            rows = journal.get(_name_of(shape))
            if rows is None:
                log.info("timing %s", _name_of(shape))
                running = [one for one in plan.candidates if results[one.name].failure is None]
                outcomes = timing.time(running, shape, reel.pieces(*shape))
                rows = {name: asdict(outcome) for name, outcome in outcomes.items()}
                journal.add(_name_of(shape), rows)
            for name, row in rows.items():
                results[name] = _Outcome.from_row(row).added_to(results[name])
            steps.next()


def _name_of(shape: tuple[float, int]) -> str:
    return f"{shape[0]:g} s x {shape[1]}"


class _Timing:
    """The candidates' processes, each started when it is first needed."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan, self._stack = plan, stack
        self._open: dict[str, CandidateProcess] = {}

    def time(
        self, candidates: Sequence[Candidate], shape: tuple[float, int], waves: Sequence[Waveform]
    ) -> dict[str, _Outcome]:
        """Return what each of the candidates takes for `waves`, run in turn."""
        outcomes: dict[str, _Outcome] = {}
        taking: dict[str, CandidateProcess] = {}
        for candidate in candidates:
            try:
                process = self._process_of(candidate)
                process.take(waves)
                taking[candidate.name] = process
            except UnsuitableError as error:
                outcomes[candidate.name] = _Outcome(skipped=Skipped(*shape, str(error)))
            except CandidateError as error:
                outcomes[candidate.name] = _failed(candidate.name, shape, error)
        runs = time_interleaved(
            {name: process.run for name, process in taking.items()},
            repeats=self._plan.repeats,
            pause_seconds=self._plan.pause_seconds,
        )
        for name, found in runs.items():
            outcomes[name] = _outcome_of(name, shape, found, taking[name])
        for name, outcome in outcomes.items():
            if outcome.failure is not None and name in self._open:
                self._open[name].close()  # not run again: the others may need its memory
        return outcomes

    def _process_of(self, candidate: Candidate) -> CandidateProcess:
        if candidate.name not in self._open:
            process = CandidateProcess(candidate, self._plan.threads)
            self._open[candidate.name] = self._stack.enter_context(process)
            process.open()
        return self._open[candidate.name]


def _outcome_of(
    name: str, shape: tuple[float, int], found: Runs, process: CandidateProcess
) -> _Outcome:
    if isinstance(found.failure, UnsuitableError):
        return _Outcome(skipped=Skipped(*shape, str(found.failure)))
    if found.failure is not None:
        return _failed(name, shape, found.failure)
    try:
        return _Outcome(cell=found.cell(*shape, process.peak_bytes()))
    except CandidateError as error:
        return _failed(name, shape, error)


def _failed(name: str, shape: tuple[float, int], error: Exception) -> _Outcome:
    reason = f"at {_name_of(shape)}: {error}"
    log.warning("warning: %s %s", name, reason)
    return _Outcome(failure=reason)
