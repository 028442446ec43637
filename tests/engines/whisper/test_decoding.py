from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.seq2seq import STEP, GenerationSpec
from speechquant.engines.session import open_decoder_session
from speechquant.engines.whisper.decoding import Asked, decode
from speechquant.engines.whisper.token_rules import TokenRules

WORD, END, START, VOCABULARY = 1, 3, 4, 5
SPEC = GenerationSpec(START, END, max_tokens=20)


class CountedRun:
    """A run in which clip n says n words; it keeps how many rows each token cost."""

    def __init__(self, clips: int) -> None:
        self.words_left = list(range(clips))
        self.rows: list[int] = []
        self.prompt_logits = self._logits()[:, None]

    def _logits(self) -> NDArray[np.float32]:
        logits = np.zeros((len(self.words_left), VOCABULARY), np.float32)
        for row, words in enumerate(self.words_left):
            logits[row, WORD if words > 0 else END] = 9.0
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        self.words_left = [self.words_left[row] for row in rows]

    def advance(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.rows.append(len(tokens))
        self.words_left = [words - 1 for words in self.words_left]
        return self._logits()


class CountedSession:
    def start(self, hidden: Any, prompts: NDArray[np.int64]) -> CountedRun:
        self.run = CountedRun(len(prompts))
        return self.run


def test_clips_that_have_ended_leave_once_they_are_half_of_the_batch() -> None:
    session: Any = CountedSession()
    prompts = np.full((8, 1), START)
    rules = TokenRules(SPEC, timestamps=False)
    found = decode(session, np.zeros((8, 1, 1), np.float32), Asked(prompts), rules, SPEC)
    assert [decoded.tokens for decoded in found] == [(WORD,) * clip for clip in range(8)]
    # The same for every token, the end included.
    assert np.ptp([decoded.log_probability for decoded in found]) < 1e-6
    assert session.run.rows == [8, 8, 8, 4, 4, 2, 1]


@pytest.mark.parametrize("temperature", [1e-300, 1e-50, 0.4])
def test_the_colder_the_more_certain(temperature: float) -> None:
    session: Any = CountedSession()
    rules = TokenRules(SPEC, timestamps=False)
    found = decode(
        session,
        np.zeros((3, 1, 1), np.float32),
        Asked(
            np.full((3, 1), START),
            temperature,
            [np.random.default_rng(clip) for clip in range(3)],
        ),
        rules,
        SPEC,
    )
    assert [decoded.tokens for decoded in found] == [(WORD,) * clip for clip in range(3)]


def test_a_run_goes_on_with_some_of_its_clips(whisper_bundle: Bundle) -> None:
    spec = whisper_bundle.spec
    rng = np.random.default_rng(0)
    shape = (3, spec.features.mel_bins, spec.features.chunk_frames)
    prompts = np.array([[301, 302, 306], [301, 303, 306], [301, 304, 306]])
    with open_decoder_session(whisper_bundle, provider="cpu", threads=1) as session:
        hidden = session.encode(rng.normal(0, 0.7, shape).astype(np.float32))
        run = session.start(hidden, prompts)
        run.advance([20, 30, 40])
        run.keep([2, 0])
        found = [run.advance([41, 21]), run.advance([42, 22])]
        alone = session.start(hidden[[2, 0]], prompts[[2, 0]])
        alone.advance([40, 20])
        expected = [alone.advance([41, 21]), alone.advance([42, 22])]
    assert np.abs(np.array(found) - expected).max() < 1e-5


def test_a_step_copies_no_cache(whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values go from run to run as they are, the encoder's are bound but once."""
    spec = whisper_bundle.spec
    shape = (2, spec.features.mel_bins, spec.features.chunk_frames)
    features = np.random.default_rng(0).normal(0, 0.7, shape).astype(np.float32)
    prompts = np.array([[301, 302, 306], [301, 303, 306]])
    copied: list[tuple[int, ...]] = []
    bound: list[str] = []
    with open_decoder_session(whisper_bundle, provider="cpu", threads=1) as session:
        run = session.start(session.encode(features), prompts)
        step = session.graphs[STEP]
        value_of, array_of, bind = step.value_of, step.array_of, run._runs.bind

        def copied_in(array: NDArray[Any]) -> Any:
            copied.append(array.shape)
            return value_of(array)

        def copied_out(value: Any) -> NDArray[Any]:
            array = array_of(value)
            copied.append(array.shape)
            return array

        def noted(name: str, value: Any) -> None:
            bound.append(name)
            bind(name, value)

        monkeypatch.setattr(step, "value_of", copied_in)
        monkeypatch.setattr(step, "array_of", copied_out)
        monkeypatch.setattr(run._runs, "bind", noted)
        for tokens in ([20, 30], [21, 31]):
            run.advance(tokens)
    vocabulary = run.prompt_logits.shape[-1]
    assert copied == 2 * [(2, 1), (2, 1, vocabulary)]  # the token and the logits, no more
    assert "tokens" in bound and not [name for name in bound if "cross" in name]


def test_clips_are_encoded_one_by_one(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = whisper_bundle.spec.features
    shape = (3, spec.mel_bins, spec.chunk_frames)
    features = np.random.default_rng(0).normal(0, 0.7, shape).astype(np.float32)
    batches = []
    with open_decoder_session(whisper_bundle, provider="cpu", threads=1) as session:
        run = session.encoder.run
        expected = run({"features": features})["hidden"]

        def counted(feeds: Any) -> Any:
            batches.append(len(feeds["features"]))
            return run(feeds)

        monkeypatch.setattr(session.encoder, "run", counted)
        found = session.encode(features)
    assert batches == [1, 1, 1]
    assert np.abs(found - expected).max() < 1e-5


def test_a_run_that_heard_the_first_token_goes_on_as_one_that_heard_all(
    whisper_bundle: Bundle,
) -> None:
    spec = whisper_bundle.spec
    shape = (2, spec.features.mel_bins, spec.features.chunk_frames)
    features = np.random.default_rng(0).normal(0, 0.7, shape).astype(np.float32)
    prompts = np.array([[301, 302, 306], [301, 303, 306]])
    rules = TokenRules(spec.generation, timestamps=False)
    with open_decoder_session(whisper_bundle, provider="cpu", threads=1) as session:
        hidden = session.encode(features)
        begun = session.start(hidden, prompts[:, :1])
        found = decode(session, hidden, Asked(prompts), rules, spec.generation, begun)
        expected = decode(session, hidden, Asked(prompts), rules, spec.generation)
    assert [clip.tokens for clip in found] == [clip.tokens for clip in expected]
    assert any(clip.tokens for clip in expected)
    for clip, other in zip(found, expected, strict=True):
        assert clip.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        assert clip.no_speech == pytest.approx(other.no_speech, abs=1e-6)
