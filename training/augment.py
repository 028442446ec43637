"""What happens between a mouth and a microphone: room echo, noise, gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """How often and how badly a clip is degraded; the defaults are those of the corpus."""

    echo_probability: float = 0.4
    reverberation_seconds: tuple[float, float] = (0.15, 0.6)
    echo_to_direct_db: tuple[float, float] = (-12.0, 0.0)
    noise_probability: float = 0.7
    snr_db: tuple[float, float] = (3.0, 25.0)
    peak_dbfs: tuple[float, float] = (-20.0, -1.0)


def _amplitude(db: float) -> float:
    return float(10.0 ** (db / 20.0))


def _rms(wave: NDArray[np.floating[Any]]) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def coloured_noise(samples: int, tilt: float, rng: np.random.Generator) -> Waveform:
    """Return unit-RMS noise whose power falls with frequency to the power `tilt` (0 is white)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    shaped = np.fft.irfft(spectrum * frequency ** (-tilt / 2), samples)
    # A slow swell, so that the noise is not the same under every word.
    phase = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(1, 12), samples)
    noise = (shaped * (1.0 + 0.5 * np.sin(phase))).astype(np.float32)
    return noise / np.float32(_rms(noise))


def add_noise(wave: Waveform, snr_db: float, tilt: float, rng: np.random.Generator) -> Waveform:
    """Return `wave` with noise at `snr_db` below its own mean power."""
    level = _rms(wave) * _amplitude(-snr_db)
    return wave + np.float32(level) * coloured_noise(len(wave), tilt, rng)


def add_echo(
    wave: Waveform,
    sample_rate_hz: int,
    reverberation_seconds: float,
    echo_to_direct_db: float,
    rng: np.random.Generator,
) -> Waveform:
    """Return `wave` in a room: itself plus an exponentially decaying noise tail, same length."""
    taps = int(reverberation_seconds * sample_rate_hz)
    seconds = np.arange(taps) / sample_rate_hz
    # Reverberation time is defined by a decay of 60 dB: 10^-3 in amplitude.
    tail = rng.standard_normal(taps) * 10.0 ** (-3.0 * seconds / reverberation_seconds)
    size = len(wave) + taps
    mixed = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)
    echo: Waveform = mixed[: len(wave)].astype(np.float32)
    level = _rms(wave) * _amplitude(echo_to_direct_db) / max(_rms(echo), 1e-12)
    return wave + np.float32(level) * echo


def degrade(
    wave: Waveform, sample_rate_hz: int, conditions: Conditions, rng: np.random.Generator
) -> Waveform:
    """Return a copy of `wave` with echo, noise and gain drawn from `conditions`."""
    if rng.random() < conditions.echo_probability:
        wave = add_echo(
            wave,
            sample_rate_hz,
            rng.uniform(*conditions.reverberation_seconds),
            rng.uniform(*conditions.echo_to_direct_db),
            rng,
        )
    if rng.random() < conditions.noise_probability:
        wave = add_noise(wave, rng.uniform(*conditions.snr_db), rng.uniform(0.0, 2.0), rng)
    peak = float(np.max(np.abs(wave), initial=1e-9))
    return wave * np.float32(_amplitude(rng.uniform(*conditions.peak_dbfs)) / peak)
