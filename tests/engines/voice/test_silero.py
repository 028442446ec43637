from __future__ import annotations

from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from speechquant.core.errors import MissingPackageError
from speechquant.engines.voice import silero
from speechquant.engines.voice.pieces import voices_in
from speechquant.engines.voice.silero import SAMPLE_RATE_HZ, require_silero, voice_probabilities

needs_silero = pytest.mark.skipif(
    find_spec("silero_vad") is None, reason="silero-vad is not installed"
)


@cache
def synthesizer_of_this_process() -> Any:
    from speechquant.zoo.espeak import EspeakSynthesizer

    return EspeakSynthesizer()  # a second one would wait for the first for ever


def spoken(text: str) -> np.ndarray:
    import soxr

    from speechquant.zoo.espeak import Utterance

    synthesizer = synthesizer_of_this_process()
    raw = (
        synthesizer.speak(Utterance(text, "en", rate=150, pitch=50, pitch_range=50)).astype(
            np.float32
        )
        / 32_768
    )
    return np.asarray(soxr.resample(raw, synthesizer.sample_rate_hz, SAMPLE_RATE_HZ), np.float32)


@needs_silero
def test_a_voice_is_found_between_silences() -> None:
    voice = spoken("The quick brown fox jumps over the lazy dog, and the dog sleeps on.")
    silence = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    found = voices_in(
        voice_probabilities(np.concatenate([silence, voice, silence])), 30 * SAMPLE_RATE_HZ
    )
    assert found
    assert found[0].start / SAMPLE_RATE_HZ == pytest.approx(3.0, abs=0.3)
    end = 3.0 + len(voice) / SAMPLE_RATE_HZ
    assert found[-1].end / SAMPLE_RATE_HZ == pytest.approx(end, abs=0.5)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    assert voices_in(voice_probabilities(noise), 30 * SAMPLE_RATE_HZ) == []
    assert voices_in(voice_probabilities(silence[:100]), 30 * SAMPLE_RATE_HZ) == []


@needs_silero
def test_probabilities_are_those_of_the_streaming_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's first model hears a frame at a time, and is another file."""
    monkeypatch.setattr(silero, "_FRAMES_AT_ONCE", 7)  # the state goes on from call to call
    wave = np.concatenate([np.zeros(4000, np.float32), spoken("One two three four.")])
    session = onnxruntime.InferenceSession(str(require_silero().with_name("silero_vad.onnx")))
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    expected = []
    for first in range(0, len(wave), 512):
        frame = np.zeros((1, 512), np.float32)
        frame[0, : len(wave[first : first + 512])] = wave[first : first + 512]
        feeds = {"input": np.concatenate([before, frame], axis=1), "state": state}
        probability, state = session.run(None, {**feeds, "sr": np.array(16_000, np.int64)})
        expected.append(float(probability[0, 0]))
        before = frame[:, -64:]
    assert voice_probabilities(wave) == pytest.approx(expected, abs=1e-3)
    assert max(expected) > 0.5 > min(expected)


def test_how_to_install_it_where_it_is_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"--vad needs silero-vad: pip install 'speechqu"):
        require_silero()
    old = ModuleSpec("silero_vad", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(silero, "find_spec", lambda name: old)
    with pytest.raises(MissingPackageError, match="newer silero-vad, one with silero_vad_16k_seq"):
        require_silero()
