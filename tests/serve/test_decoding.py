"""`serve --vad` and `--beam`: the texts are those of `transcribe` asked alike."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from loud_voices import DENSE, RATE_HZ, SILENT, SPARSE, take_loud_for_voice
from serving import serving

from speechquant.core.bundles import Bundle
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.voice import silero
from speechquant.pipeline.command import run

pytest.importorskip("fastapi")
# A temperature above 0 is the only one that is tried; noise would be decoded at six.
DRAWN: dict[str, Any] = {"language": "en", "temperatures": (0.2,)}
FIELDS = {"model": "whisper", "language": "en", "temperature": "0.2"}


def wav_of(wave: np.ndarray) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, wave, RATE_HZ, format="WAV", subtype="FLOAT")
    return target.getvalue()


def texts_of(bundle: Bundle, asked: DecodingOptions, *waves: np.ndarray) -> list[str]:
    with open_recognizer(bundle, threads=1, decoding=asked) as recognizer:
        return recognizer.transcribe(waves)


def test_a_server_with_vad_hears_what_transcribe_hears(
    tiny_bundle: Bundle, whisper_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_loud_for_voice(monkeypatch)
    waves = (SPARSE, DENSE, SILENT)
    voiced = texts_of(whisper_bundle, DecodingOptions(**DRAWN, vad=True), *waves)
    of_ctc = texts_of(tiny_bundle, DecodingOptions(vad=True), *waves)
    assert voiced[:2] != texts_of(whisper_bundle, DecodingOptions(**DRAWN), *waves[:2])
    models = {"ctc": tiny_bundle.folder, "whisper": whisper_bundle.folder}
    with serving(models, tmp_path, decoding=DecodingOptions(vad=True)) as running:
        for wave, text, ctc_text in zip(waves, voiced, of_ctc, strict=True):
            status, heard = running.post(FIELDS, wav_of(wave))
            assert (status, heard["text"]) == (200, text)
            status, heard = running.post({"model": "ctc"}, wav_of(wave))
            assert (status, heard["text"]) == (200, ctc_text)
        asked = {**FIELDS, "response_format": "verbose_json"}
        _, heard = running.post(asked, wav_of(SPARSE))
    assert heard["segments"]
    # Noise begins at 3 s; what is told of it is in the time of the file.
    assert heard["segments"][0]["start"] >= 2.5
    assert heard["segments"][-1]["end"] > 10.0


def test_a_server_with_beams_writes_what_transcribe_writes(
    whisper_bundle: Bundle, tmp_path: Path
) -> None:
    greedy = DecodingOptions(language="en", temperatures=(0.0,))
    beams = DecodingOptions(language="en", temperatures=(0.0,), beams=3)
    wave = DENSE[:RATE_HZ]
    (expected,) = texts_of(whisper_bundle, beams, wave)
    assert expected != texts_of(whisper_bundle, greedy, wave)[0]
    left_open = DecodingOptions(temperatures=(0.0,), beams=3)
    with serving({"whisper": whisper_bundle.folder}, tmp_path, decoding=left_open) as running:
        status, heard = running.post({"model": "whisper", "language": "en"}, wav_of(wave))
    assert (status, heard["text"]) == (200, expected)


def test_what_a_model_does_not_support_is_one_line(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: str) -> str:
        assert run(["serve", str(tiny_bundle.folder), "--port", "0", *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "not a Whisper model, which alone has" in refusal("--beam", "5")
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    assert refusal("--vad").startswith("error: --vad needs silero-vad: pip install")
