from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.whisper import recognizer as module
from speechquant.engines.whisper import untold
from speechquant.engines.whisper.decoding import Asked, Decoded
from speechquant.engines.whisper.segments import TimedTokens
from speechquant.engines.whisper.untold import (
    Stretch,
    says_too_little,
    stretches_of,
    voiced_frames,
)

RATE_HZ = 16_000
_FIRST = 311  # the token of 0.00 s
_NO_TIMES = _FIRST - 1


def test_loud_frames_are_voiced() -> None:
    features = np.full((4, 100), -1.0, np.float32)
    features[2, 20:50] = 1.0  # one band is enough
    features[1, 60:70] = 1.0 - 0.5  # 20 dB less
    features[1, 80:90] = 1.0 - 1.0  # 40 dB less
    assert np.flatnonzero(voiced_frames(features)).tolist() == [*range(20, 50), *range(60, 70)]


def test_segments_and_the_gaps_around_them() -> None:
    one, two = TimedTokens((5,), 100, 200), TimedTokens((6, 7), 200, 260)
    assert stretches_of([one, two], 600) == [
        Stretch(0, 200),
        Stretch(200, 400, one),
        Stretch(400, 520, two),
        Stretch(520, 600),
    ]
    # A segment may end behind what the chunk used up.
    assert stretches_of([two], 500) == [Stretch(0, 400), Stretch(400, 500, two)]
    assert stretches_of([], 50) == [Stretch(0, 50)]


@pytest.mark.parametrize(
    ("seconds", "tokens", "least", "expected"),
    [
        (24, 7, 1.0, True),  # five words in 24 s
        (24, 60, 1.0, False),
        (24, 7, 0.0, False),
        (4, 1, 1.0, False),  # a slow word
        (4, None, 1.0, True),
        (2, None, 1.0, False),
        (4, None, 0.0, False),
    ],
)
def test_what_says_too_little(
    seconds: int, tokens: int | None, least: float, expected: bool
) -> None:
    frames = 100 * seconds
    segment = None if tokens is None else TimedTokens((9,) * tokens, 0, frames // 2)
    voiced = np.ones(frames, np.bool_)
    assert says_too_little(Stretch(0, frames, segment), voiced, 100.0, least) is expected
    # A pause takes no words.
    assert not says_too_little(Stretch(0, frames, segment), ~voiced, 100.0, least)


class Scripted:
    """In place of the decoder: what it says of each chunk, and what it was asked."""

    def __init__(self, *said: Decoded) -> None:
        self.said, self.asked = list(said), list[list[int]]()

    def __call__(self, session: Any, hidden: Any, given: Asked, *rest: Any) -> list[Decoded]:
        self.asked += given.prompts.tolist()
        return [self.said.pop(0) for _ in given.prompts]


@pytest.fixture
def short_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of the tiny model has two seconds only."""
    monkeypatch.setattr(untold, "LEAST_THIN_SECONDS", 0.8)
    monkeypatch.setattr(untold, "LEAST_GAP_SECONDS", 0.8)


def noise(seconds: float) -> np.ndarray:
    samples = round(seconds * RATE_HZ)
    return 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def heard(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    script: Scripted,
    seconds: float = 2.0,
    **asked: Any,
) -> Any:
    monkeypatch.setattr(module, "decode", script)
    options = DecodingOptions(**{"language": "en", "temperatures": (0.0,), **asked})
    with open_recognizer(bundle, threads=1, decoding=options) as recognizer:
        return recognizer.recognize([noise(seconds)])[0]


# 0.3 s that are told of, then a segment of one token over 1.5 s, then the end.
_THIN = (_FIRST, 60, 61, 62, _FIRST + 15, _FIRST + 15, 63, _FIRST + 90, _FIRST + 90)
_MORE = tuple(range(64, 70))


@pytest.mark.usefixtures("short_is_enough")
@pytest.mark.parametrize(
    ("again", "tokens"),
    [
        (Decoded(_MORE, -0.2, 0.0), _MORE),
        (Decoded((64,), -0.2, 0.0), (63,)),  # no more than before
        (Decoded(_MORE, -2.0, 0.0), (63,)),  # a guess
        (Decoded(_MORE, -0.2, 0.9), (63,)),  # no speech
        (Decoded((64, 65) * 40, -0.2, 0.0), (63,)),  # a loop
    ],
)
def test_a_thin_segment_is_heard_again_alone_without_timestamps(
    whisper_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    again: Decoded,
    tokens: tuple[int, ...],
) -> None:
    script = Scripted(Decoded(_THIN, -0.1, 0.0), again, Decoded((), -0.1, 0.0))
    found = heard(whisper_bundle, monkeypatch, script, timestamps=True)
    assert [prompt[-1] == _NO_TIMES for prompt in script.asked][:2] == [False, True]
    first, second = found.segments[:2]
    assert (first.decoding.tokens, second.decoding.tokens) == ((60, 61, 62), tokens)
    assert (second.start, second.end) == (0.3, 1.8)
    if tokens == _MORE:
        assert second.decoding.chunk_start == 0.3
        assert second.decoding.log_probability == -0.2


@pytest.mark.usefixtures("short_is_enough")
def test_speech_after_the_last_segment_is_heard(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone timestamp at the end says that the rest of the chunk is silent, and may be wrong."""
    told = (_FIRST, 60, 61, 62, _FIRST + 20)
    script = Scripted(Decoded(told, -0.1, 0.0), Decoded(_MORE, -0.2, 0.0))
    found = heard(whisper_bundle, monkeypatch, script, timestamps=True)
    assert [(one.start, one.end) for one in found.segments] == [(0.0, 0.4), (0.4, 2.0)]
    assert found.segments[1].decoding.tokens == _MORE
    assert script.said == []


@pytest.mark.usefixtures("short_is_enough")
def test_a_thin_chunk_without_timestamps_is_heard_again_with_them(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = (_FIRST, *_MORE, _FIRST + 100)
    script = Scripted(Decoded((60,), -0.1, 0.0), Decoded(timed, -0.2, 0.0))
    found = heard(whisper_bundle, monkeypatch, script)
    assert [prompt[-1] == _NO_TIMES for prompt in script.asked] == [True, False]
    assert found.text == "abcdef"  # a letter a token
    assert found.segments == ()


@pytest.mark.usefixtures("short_is_enough")
def test_nothing_is_heard_again_where_nobody_asks(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(Decoded(_THIN, -0.1, 0.0), Decoded((), -0.1, 0.0))
    found = heard(whisper_bundle, monkeypatch, script, timestamps=True, least_tokens_per_second=0.0)
    assert found.segments[1].decoding.tokens == (63,)
    with pytest.raises(OptionError, match="least_tokens_per_second"):
        DecodingOptions(least_tokens_per_second=-1.0)
