"""The time of models that write token by token: on a clock that is turned by hand, and for real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.benchmarks.bench import token_latency as seq2seq_latency
from speechquant.benchmarks.bench.latency import measure_latency, run_once
from speechquant.benchmarks.bench.token_latency import (
    LATER_TOKENS,
    Written,
    prompt_of,
    time_own_run,
    time_parts,
)
from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError
from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines import DecodingOptions, open_recognizer

RATE_HZ = 16_000
GREEDY = DecodingOptions(language="de", temperatures=(0.0,))


class Clock:
    """What takes time says so."""

    now = 0

    def perf_counter_ns(self) -> int:
        return self.now


class FakeRun:
    def __init__(self, clock: Clock) -> None:
        self._clock, self.given = clock, list[list[int]]()
        self.prompt_logits = "logits"

    def advance(self, tokens: list[int]) -> None:
        self.given.append(list(tokens))
        self._clock.now += 3

    def keep(self, rows: list[int]) -> None:
        self._clock.now += 7


class FakeSession:
    """Takes 100 for each chunk, 20 to start, 3 for a token, 7 to let clips go."""

    provider = "cpu"

    def __init__(self, clock: Clock) -> None:
        self._clock, self.runs, self.prompts = clock, list[FakeRun](), list[list[int]]()

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        self._clock.now += 100 * len(features)
        return features

    def start(self, hidden: object, prompts: NDArray[np.int64]) -> FakeRun:
        self._clock.now += 20
        self.prompts += prompts.tolist()
        self.runs.append(FakeRun(self._clock))
        return self.runs[-1]


class FakeRecognizer:
    """Hears a clip in one chunk of two attempts, of four and of two tokens."""

    def __init__(self, clock: Clock, most_tokens: int) -> None:
        self._clock, self.session = clock, FakeSession(clock)
        generation = GenerationSpec(
            9, 8, most_tokens, no_timestamps=14, languages={"de": 10, "en": 11},
            tasks={"translate": 12, "transcribe": 13},
        )  # fmt: skip
        self.spec = SimpleNamespace(generation=generation)

    def features_of_first_chunk(self, wave: object) -> tuple[NDArray[np.float32], object]:
        self._clock.now += 5
        return np.zeros((1, 2, 4), np.float32), None

    def transcribe(self, waves: list[object]) -> None:
        hidden = self.session.encode(
            np.concatenate([self.features_of_first_chunk(wave)[0] for wave in waves])
        )
        for tokens in (4, 2):
            run = self.session.start(hidden, np.array([[9]]))
            assert run.prompt_logits == "logits"
            for _ in range(tokens):
                self._clock.now += 1  # to choose one
                run.advance([1])
            run.keep([0])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(seq2seq_latency, "time", clock)
    return clock


def test_parts_on_given_tokens(clock: Clock) -> None:
    recognizer: Any = FakeRecognizer(clock, most_tokens=448)
    parts = time_parts(recognizer, [np.zeros(1), np.zeros(1)])
    assert (parts.features, parts.encoder, parts.prefill) == (10, 200, 20)
    assert parts.later == (3,) * LATER_TOKENS
    assert recognizer.session.prompts == [[9, 10, 13, 14]] * 2
    (run,) = recognizer.session.runs
    assert {len(given) for given in run.given} == {2}
    assert all(token < 8 for given in run.given for token in given)  # text, and no end


def test_no_more_tokens_than_fit_beside_the_prompt(clock: Clock) -> None:
    recognizer: Any = FakeRecognizer(clock, most_tokens=10)
    assert time_parts(recognizer, [np.zeros(1)]).later == (3,) * 6


def test_a_prompt_has_what_the_checkpoint_has() -> None:
    assert prompt_of(GenerationSpec(9, 8, 448)) == [9]
    assert prompt_of(GenerationSpec(9, 8, 448, no_timestamps=12)) == [9, 12]


def test_the_whole_and_what_was_written(clock: Clock) -> None:
    recognizer: Any = FakeRecognizer(clock, most_tokens=448)
    session = recognizer.session
    found = time_own_run(recognizer, [np.zeros(1)])
    # Two starts of 20, six tokens of 3, and twice 7, after a chunk of 100; a choice of 1 each.
    assert (found.prepare, found.network, found.text) == (5, 100 + 40 + 18 + 14, 6)
    assert found.written == Written(chunks=1, starts=2, steps=6)
    assert recognizer.session is session


def test_counts_are_those_of_the_text(whisper_bundle: Bundle) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * RATE_HZ).astype(np.float32)
    short, long = noise[:RATE_HZ], noise
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        sample = run_once(recognizer, [short])
        _, tokens = recognizer.first_chunk(short)  # type: ignore[union-attr]
        assert sample.tokens is not None
        # <start> <de> <transcribe> <no timestamps>, then each token that is not the end.
        assert sample.tokens.written == Written(1, 1, len(tokens) - 4)
        assert len(sample.tokens.parts.later) == 24 - 4
        assert time_own_run(recognizer, [long]).written.chunks >= 3  # type: ignore[arg-type]
        with pytest.raises(AudioError, match="the audio is silence"):
            run_once(recognizer, [np.zeros(RATE_HZ, np.float32)])


def test_both_families_in_this_process(
    whisper_bundle: Bundle, tiny_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    with (
        open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as one,
        open_recognizer(tiny_bundle, threads=1) as other,
    ):
        cells = measure_latency({"one": one, "other": other}, [noise], repeats=3, pause_seconds=0)
    tokens = cells["one"].tokens
    assert tokens is not None
    assert cells["other"].tokens is None
    assert len(tokens.later) == len(tokens.encoder) == 3
