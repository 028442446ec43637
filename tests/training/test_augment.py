from __future__ import annotations

import numpy as np
import pytest

from speechquant.training.augment import Conditions, add_echo, add_noise, coloured_noise, degrade

RATE_HZ = 16_000


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
def test_noise_has_the_level_it_is_asked_for(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(RATE_HZ) / 10).astype(np.float32)
    noise = add_noise(wave, snr_db, 1.0, rng) - wave
    assert 10 * np.log10(power(wave) / power(noise)) == pytest.approx(snr_db, abs=0.01)


@pytest.mark.parametrize(("tilt", "octave_db"), [(0.0, 0.0), (1.0, -3.01), (2.0, -6.02)])
def test_noise_falls_by_its_tilt_per_octave(tilt: float, octave_db: float) -> None:
    rng = np.random.default_rng(0)
    spectra = [np.abs(np.fft.rfft(coloured_noise(RATE_HZ, tilt, rng))) ** 2 for _ in range(40)]
    spectrum = np.mean(spectra, axis=0)
    low, high = spectrum[900:1_100].mean(), spectrum[1_800:2_200].mean()
    assert 10 * np.log10(high / low) == pytest.approx(octave_db, abs=0.5)


def test_echo_comes_after_the_sound_at_its_level_and_dies_away() -> None:
    rng = np.random.default_rng(0)
    wave = np.zeros(RATE_HZ, np.float32)
    wave[4_000] = 1.0
    echo = add_echo(wave, RATE_HZ, 0.5, -6.0, rng) - wave
    assert not np.abs(echo[:4_000]).max() > 1e-6
    assert 10 * np.log10(power(echo) / power(wave)) == pytest.approx(-6.0, abs=0.01)
    # 60 dB in half a second are 12 dB in a tenth.
    early, late = power(echo[4_000:5_600]), power(echo[5_600:7_200])
    assert 10 * np.log10(late / early) == pytest.approx(-12.0, abs=1.0)


def test_gain_sets_the_peak() -> None:
    rng = np.random.default_rng(0)
    quiet = Conditions(echo_probability=0, noise_probability=0, peak_dbfs=(-6.0, -6.0))
    wave = np.sin(np.arange(RATE_HZ) / 10).astype(np.float32) * 0.01
    louder = degrade(wave, RATE_HZ, quiet, rng)
    assert np.abs(louder).max() == pytest.approx(10 ** (-6 / 20), rel=1e-4)
    assert np.abs(wave).max() == pytest.approx(0.01, rel=1e-3)


def test_conditions_are_met_as_often_as_they_say() -> None:
    conditions = Conditions(echo_probability=0, noise_probability=0.3, peak_dbfs=(0, 0))
    wave = np.sin(np.arange(1_600) / 10).astype(np.float32)
    wave /= np.abs(wave).max()
    rng = np.random.default_rng(0)
    noisy = sum(not np.allclose(degrade(wave, RATE_HZ, conditions, rng), wave) for _ in range(400))
    assert 90 <= noisy <= 150  # 120 expected; three standard deviations
