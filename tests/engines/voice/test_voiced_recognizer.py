from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loud_voices import DENSE, RATE_HZ, SILENT, SPARSE, loud_frames, take_loud_for_voice

from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, MissingPackageError, OptionError
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines import families as families_module
from speechquant.engines.voice import recognizer as module
from speechquant.engines.voice import silero
from speechquant.engines.voice.pieces import pieces_of, voices_in

WHISPER = DecodingOptions(language="de", temperatures=(0.0,), vad=True)


@pytest.fixture(autouse=True)
def loud_is_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    take_loud_for_voice(monkeypatch)


def test_whisper_hears_the_pieces_and_tells_their_times_in_the_clip(
    whisper_bundle: Bundle,
) -> None:
    asked = DecodingOptions(language="de", temperatures=(0.0,), timestamps=True)
    most = 2 * RATE_HZ
    pieces = pieces_of(voices_in(loud_frames(SPARSE), most), len(SPARSE), most)
    assert len(pieces) >= 3
    with open_recognizer(whisper_bundle, threads=1, decoding=asked) as plain:
        expected = plain.recognize([piece.of(SPARSE) for piece in pieces])
    voiced = DecodingOptions(language="de", temperatures=(0.0,), timestamps=True, vad=True)
    with open_recognizer(whisper_bundle, threads=1, decoding=voiced) as recognizer:
        assert recognizer.takes_timestamps and recognizer.provider == "cpu"
        steps: list[float] = []
        found, silent = recognizer.recognize([SPARSE, SILENT], lambda done, _: steps.append(done))
    assert found.text == " ".join(one.text for one in expected if one.text)
    assert silent.text == "" and silent.segments == ()
    assert steps == sorted(steps) and steps[-1] == 2
    assert [one.text for one in found.segments] == [
        s.text for one in expected for s in one.segments
    ]
    margin = 0.5
    spoken = [(3.0, 4.2), (8.2, 9.7), (11.7, 13.6)]
    for segment in found.segments:
        assert any(a - margin <= segment.start <= segment.end <= b + margin for a, b in spoken)
        assert segment.decoding is not None
        assert segment.decoding.chunk_start <= segment.start


def test_the_language_of_a_clip_is_that_of_its_first_piece(whisper_bundle: Bundle) -> None:
    detected = DecodingOptions(temperatures=(0.0,), vad=True)
    most = 2 * RATE_HZ
    first, *_ = pieces_of(voices_in(loud_frames(DENSE), most), len(DENSE), most)
    with open_recognizer(whisper_bundle, threads=1, decoding=detected) as recognizer:
        (found,) = recognizer.recognize([DENSE])
        plain = DecodingOptions(temperatures=(0.0,))
        (alone,) = recognizer.recognize([first.of(DENSE)], decoding=plain)
        assert found.language == alone.language
        fixed = DecodingOptions(language=found.language, temperatures=(0.0,), vad=True)
        assert recognizer.transcribe([DENSE], decoding=fixed) == [found.text]


@pytest.mark.parametrize("model", ["whisper", "ctc"])
def test_a_server_hears_pieces_of_several_clips_together(
    model: str, whisper_bundle: Bundle, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked = (
        (whisper_bundle, WHISPER)
        if model == "whisper"
        else (tiny_bundle, DecodingOptions(vad=True))
    )
    monkeypatch.setattr(module, "_PIECES_AT_ONCE", 3)
    waves = [SPARSE, DENSE, SILENT]
    with open_recognizer(bundle, threads=1, decoding=asked) as recognizer:
        expected = recognizer.recognize(waves)
        hearings = [recognizer.begin(wave, asked) for wave in waves]
        assert hearings[2].is_done and hearings[2].share_done == 1.0
        shares = []
        while left := [one for one in hearings if not one.is_done]:
            recognizer.advance(left)
            shares.append(hearings[0].share_done)
        assert [recognizer.heard(one) for one in hearings] == expected
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_words_of_a_ctc_model_are_told_where_they_are_said(tiny_bundle: Bundle) -> None:
    with open_recognizer(tiny_bundle, threads=1, decoding=DecodingOptions(vad=True)) as recognizer:
        (found,) = recognizer.recognize([SPARSE])
        assert recognizer.transcribe([SILENT]) == [""]
    spoken = [(3.0, 4.2), (8.2, 9.7), (11.7, 13.6)]
    assert found.words
    for word in found.words:
        # A word may reach from one voice over the pause that was left out into the next one.
        assert any(a - 0.5 <= word.start <= b + 0.5 for a, b in spoken)
        assert any(a - 0.5 <= word.end <= b + 0.5 for a, b in spoken)


def test_a_call_without_vad_is_handed_on(whisper_bundle: Bundle) -> None:
    plain = DecodingOptions(language="de", temperatures=(0.0,))
    with open_recognizer(whisper_bundle, threads=1, decoding=WHISPER) as recognizer:
        found = recognizer.transcribe([DENSE], decoding=plain)
        hearing = recognizer.begin(DENSE, plain)
        while not hearing.is_done:
            recognizer.advance([hearing])
        assert [recognizer.heard(hearing).text] == found
    with open_recognizer(whisper_bundle, threads=1, decoding=plain) as recognizer:
        assert recognizer.transcribe([DENSE]) == found


def test_what_cannot_be_heard_is_refused(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="previous text and VAD: the pieces between pauses"):
        DecodingOptions(previous_text=True, vad=True)
    with (
        open_recognizer(whisper_bundle, threads=1) as plain,
        pytest.raises(OptionError, match="was opened without vad"),
    ):
        plain.transcribe([DENSE], decoding=WHISPER)
    with open_recognizer(whisper_bundle, threads=1, decoding=WHISPER) as recognizer:
        for wave, message in (
            (np.zeros((2, 9), np.float32), "mono samples"),
            (np.zeros(0, np.float32), "no samples"),
        ):
            with pytest.raises(AudioError, match=message):
                recognizer.transcribe([wave])
    monkeypatch.setattr(families_module, "require_silero", silero.require_silero)
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    opened: list[Any] = []
    with pytest.raises(MissingPackageError, match="--vad needs silero-vad"):
        opened.append(open_recognizer(whisper_bundle, decoding=WHISPER))
    assert opened == []
