from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import small_teacher
from transformers import WhisperFeatureExtractor

from speechquant.zoo.filter_bank import (
    CONSTANTS,
    FILTERS,
    MEL_BANDS,
    PHASES,
    centres_hz,
    filters,
    fit_projection,
    hear_in_bands,
    sums_of_bands,
)
from speechquant.zoo.wavlm_stages import Models
from speechquant.zoo.whisper_into_wavlm import front_end_features, student_of

RATE_HZ = 16_000


def tone(frequency: float, phase: float = 0.0) -> torch.Tensor:
    times = torch.arange(2_000) / RATE_HZ
    return torch.cos(2 * torch.pi * frequency * times + phase)[None]


@pytest.fixture(scope="module")
def mel_filters() -> np.ndarray[Any, Any]:
    return np.asarray(WhisperFeatureExtractor(MEL_BANDS).mel_filters)


@pytest.fixture(scope="module")
def student(mel_filters: np.ndarray[Any, Any]) -> Any:
    torch.manual_seed(0)
    model = student_of(small_teacher(256, 100).encoder).eval()
    hear_in_bands(model, torch.randn(2, 16_000), mel_filters)
    return model


def heard(student: Any, waves: torch.Tensor) -> torch.Tensor:
    """Return what the first convolution makes of waves, [filters, phases, frames]."""
    with torch.inference_mode():
        convolved: torch.Tensor = student.wavlm.feature_extractor.conv_layers[0].conv(
            waves[:, None]
        )[0]
    return convolved[: FILTERS * PHASES].unflatten(0, (FILTERS, PHASES))


def test_a_tone_is_loudest_in_its_own_filter(student: Any) -> None:
    for index in (5, 60, 99, 140):
        energies = heard(student, tone(centres_hz()[index])).square().sum((1, 2))
        assert energies.argmax() == index


def test_the_phases_of_a_tone_sum_to_the_same(student: Any) -> None:
    sums = torch.stack(
        [
            torch.nn.functional.gelu(heard(student, 0.3 * tone(centres_hz()[40], phase))[40]).sum(0)
            for phase in np.linspace(0, 2 * np.pi, 7)
        ]
    )
    assert sums.std() < 0.05 * sums.mean()
    one_phase = torch.nn.functional.gelu(heard(student, 0.3 * tone(centres_hz()[40]))[40, 0])
    assert one_phase.std() > 0.5 * one_phase.mean()


def test_every_filter_gives_one_over_common_speech(student: Any) -> None:
    waves = torch.randn(1, 160_000, generator=torch.Generator().manual_seed(2))
    levels = heard(student, waves).square().mean((1, 2)).sqrt()
    torch.testing.assert_close(levels, torch.ones(FILTERS), rtol=0.25, atol=0)


def test_silence_stays_silent(student: Any) -> None:
    first = student.wavlm.feature_extractor.conv_layers[0]
    with torch.inference_mode():
        loud, quiet = (
            first(level * tone(1_000)[:, None])[0, :-CONSTANTS].std() for level in (1.0, 1e-3)
        )
    # A layer norm alone would make both alike.
    assert quiet < 0.02 * loud


def test_filters_have_no_part_that_stands_still() -> None:
    # But the first, whose window takes in what is below 40 Hz.
    assert np.abs(filters()[1:].sum(-1)).max() < 0.2


def test_bands_share_out_all_that_they_take(mel_filters: np.ndarray[Any, Any]) -> None:
    shares = sums_of_bands(mel_filters)
    assert shares.shape == (MEL_BANDS, FILTERS)
    np.testing.assert_allclose(shares.sum(1), 1)
    middles = shares @ centres_hz()
    assert (np.diff(middles) >= 0).all()
    peaks = np.linspace(0, RATE_HZ / 2, len(mel_filters))[mel_filters.argmax(0)]
    assert np.abs(middles - peaks)[5:].max() < 250


def test_the_projection_comes_nearest_to_the_stem(student: Any) -> None:
    waves = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(4))
    models = Models(small_teacher(256, 100).encoder, student)
    stem = models.stem(waves)

    def error() -> float:
        with torch.inference_mode():
            return float((front_end_features(student, waves) - stem).square().mean())

    before = error()
    fit_projection(student, waves, stem)
    fitted = error()
    assert fitted < 0.5 * before
    bias = student.wavlm.feature_projection.projection.bias
    bias.data += 0.1 * stem.std()
    assert error() > fitted
