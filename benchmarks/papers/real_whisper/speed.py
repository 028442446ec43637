"""How fast candidates are that take turns, each in its own process, on clips of all lengths."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from subprocess import CalledProcessError

import numpy as np

from speechquant.benchmarks.bench.machine import load_average
from speechquant.benchmarks.papers.real_whisper.candidates import (
    SAMPLE_RATE_HZ,
    Candidate,
    FasterWhisper,
    Ours,
)
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.benchmarks.papers.real_whisper.rows import (
    BALANCED_OPENVINO_ROW,
    BALANCED_ROW,
    FLOAT,
    PEER_FLOAT,
    PEER_INT8,
    slug,
)
from speechquant.benchmarks.papers.real_whisper.run import (
    CheckpointFacts,
    Run,
    seconds_of,
)
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError, Turns
from speechquant.core.audio import Waveform, read_audio
from speechquant.core.errors import SpeechquantError, one_line
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.engines.runners import CPU, OPENVINO

LENGTHS_SECONDS = (2, 5, 10, 15, 20, 30)
TOGETHER = 8
ENGINE, ON_OPENVINO, IN_FLOAT = (
    "`balanced`, built engine", "`balanced` on OpenVINO", "float, ONNX Runtime",
)  # fmt: skip
BASELINE, BASELINE_FLOAT = "faster-whisper, int8", "faster-whisper, float32"
# The row of words that tells what each candidate hears: an engine hears what its bundle does.
WORDS_OF = {
    ENGINE: BALANCED_ROW.name,
    ON_OPENVINO: BALANCED_OPENVINO_ROW.name,
    IN_FLOAT: FLOAT.name,
    BASELINE: PEER_INT8.name,
    BASELINE_FLOAT: PEER_FLOAT.name,
}
_CLIPS_OF_A_LENGTH = 2
_MOST_OFF, _LEAST_OFF_SECONDS = 0.1, 0.5  # a share of the length
_CHUNK_SECONDS = 30.0
_PAUSE_SECONDS = 0.2  # the threads of the one that ran before spin on for a moment

Times = tuple[tuple[float, ...], ...]
MakeCandidate = Callable[[], Candidate]


@dataclass(frozen=True)
class Timed:
    """The seconds of each call: by candidate, by what it was given, by round."""

    audio_seconds: tuple[float, ...]
    times: Mapping[str, Times]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class SpeedRecord:
    """One clip at a time, of `lengths`, and some together; `load` is that of the machine before."""

    load: str
    repeats: int
    lengths: tuple[int, ...]
    alone: Timed
    together: Timed


def speed_record_name(run: Run, checkpoint: CheckpointFacts) -> str:
    """Return the name of a checkpoint's record."""
    key = key_of(checkpoint.key, run.test.key, run.calibration.key, run.threads, run.machine)
    return f"{slug(checkpoint.name, 'speed')}-{key}"


def clips_by_length(clips: Sequence[LabelledClip]) -> list[tuple[int, tuple[LabelledClip, ...]]]:
    """Return two clips near each length, each clip once; where there are none, two are joined."""
    seconds = [seconds_of(clip) for clip in clips]
    left = {index for index, length in enumerate(seconds) if length <= _CHUNK_SECONDS}
    chosen = []
    for wanted in LENGTHS_SECONDS:
        for _ in range(_CLIPS_OF_A_LENGTH):
            indices = _nearest(seconds, left, wanted)
            left.difference_update(indices)
            if indices:
                chosen.append((wanted, tuple(clips[index] for index in indices)))
    return chosen


def _nearest(seconds: Sequence[float], left: Collection[int], wanted: int) -> tuple[int, ...]:
    """Return the clip, or else the two, whose length is nearest to that; () where none is near."""
    most_off = max(_LEAST_OFF_SECONDS, _MOST_OFF * wanted)

    def off(indices: tuple[int, ...]) -> float:
        length = sum(seconds[index] for index in indices)
        return abs(length - wanted) if length <= _CHUNK_SECONDS else math.inf

    for count in (1, 2):
        best = min(combinations(sorted(left), count), key=off, default=())
        if best and off(best) <= most_off:
            return best
    return ()


def measure_speed(
    models: Models, clips: Sequence[LabelledClip], repeats: int, on_step: OnStep
) -> SpeedRecord:
    """Return the times of all candidates; one that does not run has a reason instead."""
    load = load_average()
    chosen = clips_by_length(clips)
    waves = [
        np.concatenate([read_audio(clip.audio, SAMPLE_RATE_HZ) for clip in joined])
        for _, joined in chosen
    ]
    batch = [waves[index] for index in _batch_of(len(waves))]
    return SpeedRecord(
        load,
        repeats,
        tuple(length for length, _ in chosen),
        _timed(_alone(models), [[wave] for wave in waves], repeats, on_step),
        _timed(_together(models), [batch] if batch else [], repeats, on_step),
    )


def _batch_of(count: int) -> Sequence[int]:
    if count < TOGETHER:
        return [index % count for index in range(TOGETHER)] if count else []
    return [index * count // TOGETHER for index in range(TOGETHER)]


def _alone(models: Models) -> dict[str, MakeCandidate]:
    threads = models.threads

    def peer(kind: str) -> Candidate:
        return FasterWhisper(models.ctranslate2(kind), threads, models.language, kind)

    return {
        ENGINE: lambda: Ours(models.engine.folder, threads, models.language),
        ON_OPENVINO: lambda: Ours(models.balanced.folder, threads, models.language, OPENVINO),
        IN_FLOAT: lambda: Ours(models.float_bundle.folder, threads, models.language, CPU),
        BASELINE: lambda: peer("int8"),
        BASELINE_FLOAT: lambda: peer("float32"),
    }


def _together(models: Models) -> dict[str, MakeCandidate]:
    alone = _alone(models)

    def batched() -> Candidate:
        folder = models.ctranslate2("int8")
        return FasterWhisper(folder, models.threads, models.language, "int8", TOGETHER)

    return {ENGINE: alone[ENGINE], ON_OPENVINO: alone[ON_OPENVINO], BASELINE: batched}


def _timed(
    makers: Mapping[str, MakeCandidate],
    calls: Sequence[Sequence[Waveform]],
    repeats: int,
    on_step: OnStep,
) -> Timed:
    times: dict[str, list[list[float]]] = {}
    reasons: dict[str, str] = {}
    with ExitStack() as stack:
        opened: dict[str, Turns] = {}
        for name, make in makers.items():
            try:
                opened[name] = stack.enter_context(Turns(make()))
                times[name] = [[] for _ in calls]
            except (SpeechquantError, CandidateError, CalledProcessError) as error:
                reasons[name] = one_line(error)
        for round_number in range(-1, repeats):  # the first warms up
            for index, waves in enumerate(calls):
                for name in list(opened):
                    time.sleep(_PAUSE_SECONDS)
                    try:
                        _, seconds = opened[name].ask(waves)
                    except CandidateError as error:
                        reasons[name] = one_line(error)
                        del opened[name], times[name]
                        continue
                    if round_number >= 0:
                        times[name][index].append(seconds)
            on_step(round_number + 2, repeats + 1)
    lengths = tuple(sum(map(len, waves)) / SAMPLE_RATE_HZ for waves in calls)
    found = {name: tuple(map(tuple, rows)) for name, rows in times.items()}
    return Timed(lengths, found, reasons)
