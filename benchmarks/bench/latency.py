"""How long candidates take, one after the other in every round: `measure_latency(...)`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from speechquant.benchmarks.bench.machine import processor_ticks
from speechquant.benchmarks.bench.token_latency import Parts, Written, time_own_run, time_parts
from speechquant.benchmarks.report.record import Cell, TokenCell
from speechquant.core.audio import Waveform
from speechquant.core.errors import OptionError
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.ctc.recognizer import CtcRecognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.whisper.recognizer import WhisperRecognizer

REPEATS = 15
# The threads of the one that ran before spin on for a moment, in case there is more to do.
PAUSE_SECONDS = 0.1
LEAST_WARM_UP, MOST_WARM_UP, STEADY = 2, 8, 0.95
WARM_UP_RULE = (
    f"each shape until a run is no longer {100 * (1 - STEADY):.0f} % faster than the fastest "
    f"before it; {LEAST_WARM_UP} to {MOST_WARM_UP} runs"
)
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class TokenSample:
    """What else is measured of a model that writes token by token."""

    written: Written
    parts: Parts


@dataclass(frozen=True)
class Sample:
    """The nanoseconds of one run, by part; `device` is the network by the GPU's own events."""

    prepare: int
    network: int
    text: int
    device: int | None = None
    tokens: TokenSample | None = None

    @property
    def whole(self) -> int:
        """Waveforms to texts."""
        return self.prepare + self.network + self.text


@dataclass
class Runs:
    """What one candidate was timed at; `failure` is what ended it early."""

    warm_up: list[Sample] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failure: Exception | None = None
    pause_ticks: list[tuple[int, int]] = field(default_factory=list)  # worked, and all

    def pause(self, seconds: float) -> None:
        """Sleep, and note what the processors do while no candidate runs."""
        time.sleep(seconds / 2)  # while the threads of the one before spin on
        before = processor_ticks()
        time.sleep(seconds / 2)
        after = processor_ticks()
        self.pause_ticks.append((after[0] - before[0], after[1] - before[1]))

    @property
    def others_share(self) -> float | None:
        """The share of the processors' time that others took in the pauses; None: unknown."""
        ticks = sum(ticks for _, ticks in self.pause_ticks)
        return sum(worked for worked, _ in self.pause_ticks) / ticks if ticks else None

    def cell(self, seconds: float, batch: int, peak_bytes: int | None = None) -> Cell:
        """Return the runs as a report keeps them."""
        device = [sample.device for sample in self.samples if sample.device is not None]
        return Cell(
            seconds,
            batch,
            prepare=tuple(sample.prepare for sample in self.samples),
            network=tuple(sample.network for sample in self.samples),
            text=tuple(sample.text for sample in self.samples),
            warm_up=tuple(sample.whole for sample in self.warm_up),
            device=tuple(device) if len(device) == len(self.samples) else None,
            peak_bytes=peak_bytes,
            others_share=self.others_share,
            tokens=_token_cell([one.tokens for one in self.samples if one.tokens is not None]),
        )


def _token_cell(samples: Sequence[TokenSample]) -> TokenCell | None:
    if not samples:
        return None
    parts = [sample.parts for sample in samples]
    written = [sample.written for sample in samples]
    return TokenCell(
        features=tuple(one.features for one in parts),
        encoder=tuple(one.encoder for one in parts),
        prefill=tuple(one.prefill for one in parts),
        later=tuple(one.later for one in parts),
        chunks=tuple(one.chunks for one in written),
        starts=tuple(one.starts for one in written),
        steps=tuple(one.steps for one in written),
    )


def run_once(recognizer: Recognizer, waves: Sequence[Waveform]) -> Sample:
    """Turn one batch into texts and return how long its parts took."""
    if isinstance(recognizer, WhisperRecognizer):
        own, parts = time_own_run(recognizer, waves), time_parts(recognizer, waves)
        return Sample(own.prepare, own.network, own.text, tokens=TokenSample(own.written, parts))
    return _run_ctc_once(cast(CtcRecognizer, recognizer), waves)


def _run_ctc_once(recognizer: CtcRecognizer, waves: Sequence[Waveform]) -> Sample:
    session = recognizer.session
    started = time.perf_counter_ns()
    feeds = feeds_of(recognizer.spec, waves)
    prepared = time.perf_counter_ns()
    logits = session.run(feeds)["logits"]
    computed = time.perf_counter_ns()
    recognizer.transcripts_of(logits, feeds["input_lengths"])
    ended = time.perf_counter_ns()
    # Only a session on a GPU has events to time by.
    milliseconds = getattr(session, "last_milliseconds", None)
    device = None if milliseconds is None else int(milliseconds * _NS_PER_MS)
    return Sample(prepared - started, computed - prepared, ended - computed, device)


def time_interleaved(
    candidates: Mapping[str, Callable[[], Sample]],
    *,
    repeats: int = REPEATS,
    pause_seconds: float = PAUSE_SECONDS,
) -> dict[str, Runs]:
    """Run every candidate once in each round, in an order that changes; return all their times.

    One that raises is left out from there on, its error kept.
    """
    found = {name: Runs() for name in candidates}
    for name, run in candidates.items():
        _attempt(found[name], lambda run=run, runs=found[name]: _warm_up(run, runs))  # type: ignore[misc]
    order = random.Random(0)  # noqa: S311
    for _ in range(repeats):
        names = [name for name, runs in found.items() if runs.failure is None]
        # In one fixed order each would always follow the same one, and meet its caches and heat.
        for name in order.sample(names, len(names)):
            run, runs = candidates[name], found[name]
            runs.pause(pause_seconds)
            _attempt(runs, lambda run=run, runs=runs: runs.samples.append(run()))  # type: ignore[misc]
    return found


def _attempt(runs: Runs, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # whatever ends one candidate must not end the others
        runs.failure = error


def _warm_up(run: Callable[[], Sample], runs: Runs) -> None:
    for count in range(MOST_WARM_UP):
        before = min((sample.whole for sample in runs.warm_up), default=None)
        runs.warm_up.append(run())
        is_steady = before is not None and runs.warm_up[-1].whole >= STEADY * before
        if count + 1 >= LEAST_WARM_UP and is_steady:
            return


def measure_latency(
    recognizers: Mapping[str, Recognizer],
    waves: Sequence[Waveform],
    *,
    repeats: int = REPEATS,
    pause_seconds: float = PAUSE_SECONDS,
) -> dict[str, Cell]:
    """Return the times of each recognizer on one batch of waveforms, all interleaved.

    Raises OptionError without a waveform, and what a recognizer raises.
    """
    if not waves:
        raise OptionError("no waveform to time on; give at least one")
    for name, recognizer in recognizers.items():
        for index, wave in enumerate(waves):
            recognizer.check(wave, f"waveform {index} for {name}")
    found = time_interleaved(
        {
            name: lambda recognizer=recognizer: run_once(recognizer, waves)  # type: ignore[misc]
            for name, recognizer in recognizers.items()
        },
        repeats=repeats,
        pause_seconds=pause_seconds,
    )
    for runs in found.values():
        if runs.failure is not None:
            raise runs.failure
    longest = {
        name: max(map(len, waves)) / recognizer.spec.sample_rate_hz
        for name, recognizer in recognizers.items()
    }
    return {name: runs.cell(longest[name], len(waves)) for name, runs in found.items()}
