from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, OptionError
from speechquant.engines import CtcRecognizer, DecodingOptions, open_recognizer, open_session

RATE_HZ = 16_000


class SpySession:
    """Keeps what it is fed and answers with the label 6 in every frame."""

    def __init__(self, frames_of: Any) -> None:
        self.feeds: list[Mapping[str, NDArray[Any]]] = []
        self.frames_of = frames_of

    def __enter__(self) -> SpySession:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.feeds.append(feeds)
        batch, samples = feeds["input_values"].shape
        logits = np.zeros((batch, self.frames_of(samples), 32), np.float32)
        logits[..., 6] = 1
        return {"logits": logits}


def spied(bundle: Bundle, **changes: Any) -> tuple[CtcRecognizer, SpySession]:
    spec = replace(bundle.spec, **changes)
    session = SpySession(spec.frames_of)
    return CtcRecognizer(replace(bundle, spec=spec), session), session


def test_waveform_is_normalised_as_transformers_does(
    tiny_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    recognizer, session = spied(tiny_bundle)
    wave = 3 * noise + 0.2
    recognizer.transcribe([wave])
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(wave, sampling_rate=RATE_HZ)
    np.testing.assert_allclose(
        session.feeds[0]["input_values"][0], expected["input_values"][0], atol=1e-5
    )


def test_how_a_whisper_is_asked_is_refused_before_anything_runs(
    tiny_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    recognizer, session = spied(tiny_bundle)
    with pytest.raises(OptionError, match=r"bundle: not a Whisper model, which alone has a"):
        recognizer.transcribe([noise], decoding=DecodingOptions(language="de"))
    assert not session.feeds
    assert recognizer.transcribe([noise], decoding=DecodingOptions())


def test_waveform_is_left_alone_where_the_checkpoint_says_so(
    tiny_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    recognizer, session = spied(tiny_bundle, normalize_waveform=False)
    recognizer.transcribe([noise])
    np.testing.assert_array_equal(session.feeds[0]["input_values"][0], noise)


def test_batches_hold_clips_of_about_one_length_and_answers_keep_their_order(
    tiny_bundle: Bundle,
) -> None:
    recognizer, session = spied(tiny_bundle)
    seconds = [40, 4, 20, 5, 30]
    waves = [np.ones(second * RATE_HZ, np.float32) for second in seconds]
    steps: list[tuple[int, int]] = []
    transcripts = recognizer.recognize(waves, lambda done, total: steps.append((done, total)))
    sizes = [list(feeds["input_lengths"] // RATE_HZ) for feeds in session.feeds]
    # 5 s are within a quarter of 4 s; 20 s are not; 30 s and 40 s together exceed the budget.
    assert sizes == [[4, 5], [20], [30], [40]]
    assert steps == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert len(transcripts) == len(waves)


def test_clips_go_alone_where_padding_would_change_them(tiny_bundle: Bundle) -> None:
    recognizer, session = spied(tiny_bundle, padding_exact=False)
    recognizer.transcribe([np.ones(length, np.float32) for length in (800, 900, 800)])
    assert [feeds["input_values"].shape for feeds in session.feeds] == [(2, 800), (1, 900)]


def test_a_batch_gives_what_each_clip_gives_alone(tiny_bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    waves = [
        rng.standard_normal(length).astype(np.float32) for length in (16_000, 5_000, 400, 31_111)
    ]
    with open_recognizer(tiny_bundle) as recognizer:
        together = recognizer.recognize(waves)
        assert together == [recognizer.recognize([wave])[0] for wave in waves]


def test_word_times_are_seconds_of_frames(tiny_bundle: Bundle) -> None:
    recognizer, _ = spied(tiny_bundle)
    (transcript,) = recognizer.recognize([np.ones(RATE_HZ, np.float32)])
    (word,) = transcript.words
    # One letter all through is said in the first of the frames of 20 ms.
    assert (word.text, word.start, word.end) == ("a", 0.0, 0.02)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0), "waveform 1: no samples"),
        (np.zeros(399), "waveform 1: its length is 399"),
        (np.full(1000, np.nan), "waveform 1: sample 0 is nan"),
        (np.zeros((2, 1000)), "waveform 1: has shape"),
    ],
)
def test_waveforms_that_cannot_be_used(
    tiny_bundle: Bundle, wave: NDArray[Any], message: str
) -> None:
    recognizer, session = spied(tiny_bundle)
    with pytest.raises(AudioError, match=message):
        recognizer.transcribe([np.ones(800), wave])
    assert session.feeds == []


def test_silence_is_no_error(tiny_bundle: Bundle) -> None:
    with open_recognizer(tiny_bundle) as recognizer:
        assert len(recognizer.transcribe([np.zeros(RATE_HZ)])) == 1


def test_nothing_gives_nothing(tiny_bundle: Bundle) -> None:
    with open_recognizer(tiny_bundle) as recognizer:
        assert recognizer.transcribe([]) == []


def test_session_takes_and_gives_arrays_by_name(tiny_bundle: Bundle) -> None:
    feeds = {
        "input_values": np.zeros((2, 800), np.float32),
        "input_lengths": np.array([800, 500], np.int64),
    }
    with open_session(Path(tiny_bundle.folder), threads=1) as session:
        outputs = session.run(feeds)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].shape == (2, 2, 32)


def test_threads_must_be_positive(tiny_bundle: Bundle) -> None:
    with pytest.raises(OptionError, match="threads is 0"):
        open_session(tiny_bundle, threads=0)
