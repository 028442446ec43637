from __future__ import annotations

import numpy as np
import pytest

from speechquant.core.seq2seq import LogMelSpec
from speechquant.engines.whisper.log_mel import chunk_features, log_mel

RATE_HZ = 16_000


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.05, 1.3, 8.0])
def test_equal_to_transformers(mel_bins: int, seconds: float) -> None:
    from transformers import WhisperFeatureExtractor

    reference = WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=8)
    spec = LogMelSpec(mel_bins, 400, 160, 8 * RATE_HZ)
    rng = np.random.default_rng(0)
    swell = np.sin(np.linspace(0, 7, int(seconds * RATE_HZ))) ** 2
    wave = (0.3 * swell * rng.standard_normal(len(swell))).astype(np.float32)
    expected = reference(wave, sampling_rate=RATE_HZ, return_tensors="np").input_features[0]
    found = chunk_features(wave, spec, RATE_HZ)
    assert found.shape == expected.shape == (mel_bins, 800)
    assert np.abs(found - expected).max() < 1e-4


def test_a_long_clip_equals_transformers_and_is_made_in_blocks() -> None:
    from transformers import WhisperFeatureExtractor

    wave = np.random.default_rng(1).normal(0, 0.1, 75 * RATE_HZ + 77).astype(np.float32)
    wave[: 20 * RATE_HZ] *= 0.01
    expected = WhisperFeatureExtractor()(
        wave, sampling_rate=RATE_HZ, return_tensors="np", truncation=False, padding="longest"
    ).input_features[0]
    found = log_mel(wave, LogMelSpec(80, 400, 160, 30 * RATE_HZ), RATE_HZ)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4


def test_silence_is_finite() -> None:
    spec = LogMelSpec(80, 400, 160, 2 * RATE_HZ)
    assert np.all(chunk_features(np.zeros(100, np.float32), spec, RATE_HZ) == -1.5)


@pytest.mark.parametrize("samples", [0, 1, 159, 400, 20_000, 7 * RATE_HZ + 900, 8 * RATE_HZ - 1])
def test_frames_of_added_silence_are_what_a_spectrum_would_give(samples: int) -> None:
    spec = LogMelSpec(80, 400, 160, 8 * RATE_HZ)
    wave = np.random.default_rng(2).normal(0, 0.1, samples).astype(np.float32)
    padded = np.pad(wave, (0, spec.chunk_samples - samples))
    np.testing.assert_array_equal(
        chunk_features(wave, spec, RATE_HZ), log_mel(padded, spec, RATE_HZ)
    )
