"""How long a model that writes token by token takes: the whole of it, and its parts.

How many tokens a model writes hangs on its weights, so two versions of it are compared part by
part, on a number of tokens that both are given; the whole is timed with the tokens of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.errors import AudioError
from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines.decoder_session import DecoderRun, Hidden, Logits, Seq2SeqSession, Tokens
from speechquant.engines.whisper.asking import TRANSCRIBE
from speechquant.engines.whisper.recognizer import WhisperRecognizer

LATER_TOKENS = 60
TEXT_TOKEN = 0  # which one is said does not matter to the time


@dataclass(frozen=True)
class Parts:
    """The nanoseconds of each part on the first chunk of each clip, with tokens that are given.

    Features are those of the whole clip, which are made before any of its chunks is encoded.
    `later` has those of each token after the first.
    """

    features: int
    encoder: int
    prefill: int
    later: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What the model's own run came to: chunks encoded, starts of the decoder, steps after them.

    The decoder starts once for each chunk, or batch of them, at each temperature that it is tried
    at, and once more to detect the language of some of a batch; for that of all the same start
    goes on, by a step for each other token of the prompt. A step gives each clip one more token.
    """

    chunks: int
    starts: int
    steps: int


@dataclass(frozen=True)
class OwnRun:
    """Nanoseconds from waveforms to features, in the network, and in choosing tokens and texts."""

    prepare: int
    network: int
    text: int
    written: Written


def prompt_of(generation: GenerationSpec) -> list[int]:
    """Return a prompt for text without timestamps, in a language that the model knows."""
    prompt = [generation.start]
    prompt += list(generation.languages.values())[:1]
    if generation.tasks:
        prompt.append(generation.tasks[TRANSCRIBE])
    if generation.no_timestamps is not None:
        prompt.append(generation.no_timestamps)
    return prompt


def time_parts(recognizer: WhisperRecognizer, waves: Sequence[Waveform]) -> Parts:
    """Return the time of each part with `LATER_TOKENS` after the first, or as many as fit."""
    session, generation = recognizer.session, recognizer.spec.generation
    prompt = prompt_of(generation)
    prompts, tokens = np.array([prompt] * len(waves), np.int64), [TEXT_TOKEN] * len(waves)
    marks = [time.perf_counter_ns()]
    features = np.concatenate([recognizer.features_of_first_chunk(wave)[0] for wave in waves])
    marks.append(time.perf_counter_ns())
    hidden = session.encode(features)
    marks.append(time.perf_counter_ns())
    run = session.start(hidden, prompts)
    marks.append(time.perf_counter_ns())
    for _ in range(min(LATER_TOKENS, generation.max_tokens - len(prompt))):
        run.advance(tokens)
        marks.append(time.perf_counter_ns())
    took = [after - before for before, after in pairwise(marks)]
    return Parts(took[0], took[1], took[2], tuple(took[3:]))


def time_own_run(recognizer: WhisperRecognizer, waves: Sequence[Waveform]) -> OwnRun:
    """Transcribe and return how long that took and what was written.

    Raises AudioError where all of it is silence, which no model is run on.
    """
    clock = _Clock()
    # A copy of its own, so that the recognizer that was given stays as it is.
    timed = copy(recognizer)
    timed.session = cast(Seq2SeqSession, _TimedSession(recognizer.session, clock))
    started = time.perf_counter_ns()
    timed.transcribe(waves)
    ended = time.perf_counter_ns()
    if clock.first is None:
        raise AudioError(
            "the audio is silence, which no model is run on; give --data with speech in it"
        )
    prepare = clock.first - started
    return OwnRun(
        prepare,
        clock.inside,
        ended - started - prepare - clock.inside,
        Written(clock.chunks, clock.starts, clock.steps),
    )


@dataclass
class _Clock:
    """When a session was first called, how long it was at work, and what it did."""

    first: int | None = None
    inside: int = 0
    chunks: int = 0
    starts: int = 0
    steps: int = 0
    _since: int = 0

    def __enter__(self) -> None:
        self._since = time.perf_counter_ns()
        if self.first is None:
            self.first = self._since

    def __exit__(self, *_: object) -> None:
        self.inside += time.perf_counter_ns() - self._since


class _TimedSession:
    """A session that notes what it is asked to do and for how long."""

    def __init__(self, session: Seq2SeqSession, clock: _Clock) -> None:
        self._session, self._clock = session, clock

    def encode(self, features: NDArray[np.float32]) -> Hidden:
        self._clock.chunks += len(features)
        with self._clock:
            return self._session.encode(features)

    def start(self, hidden: Hidden, prompts: Tokens) -> _TimedRun:
        self._clock.starts += 1
        with self._clock:
            run = self._session.start(hidden, prompts)
        return _TimedRun(run, self._clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _TimedRun:
    """The same of a run of the decoder."""

    def __init__(self, run: DecoderRun, clock: _Clock) -> None:
        self._run, self._clock = run, clock

    def advance(self, tokens: Sequence[int]) -> Logits:
        self._clock.steps += 1
        with self._clock:
            return self._run.advance(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        with self._clock:
            self._run.keep(rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)
