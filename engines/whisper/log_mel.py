"""Log-mel features as Whisper's, in NumPy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.seq2seq import LogMelSpec

Features = NDArray[np.float32]

# The mel scale of Slaney's Auditory Toolbox: linear up to 1 kHz, logarithmic above.
_LINEAR_MELS_PER_HZ, _KNEE_HZ, _KNEE_MELS = 3 / 200, 1000.0, 15.0
_LOG_MELS = 27.0 / np.log(6.4)
_POWER_FLOOR = 1e-10
_RANGE_DECADES = 8.0  # what lies further below the loudest is cut off
_BLOCK_FRAMES = 3000  # of the spectra that are held at once


def _mels(hertz: float) -> float:
    if hertz < _KNEE_HZ:
        return hertz * _LINEAR_MELS_PER_HZ
    return float(_KNEE_MELS + _LOG_MELS * np.log(hertz / _KNEE_HZ))


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels / _LINEAR_MELS_PER_HZ
    above = _KNEE_HZ * np.exp((mels - _KNEE_MELS) / _LOG_MELS)
    return np.where(mels < _KNEE_MELS, linear, above)


@lru_cache(maxsize=4)
def mel_filters(mel_bins: int, fft_samples: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Return the triangles, [frequencies, mel bins], each of the same area."""
    highest = sample_rate_hz / 2
    frequencies = np.linspace(0.0, highest, fft_samples // 2 + 1)
    corners = _hertz(np.linspace(_mels(0.0), _mels(highest), mel_bins + 2))
    rise = (frequencies[:, None] - corners[None, :-2]) / np.diff(corners)[:-1]
    fall = (corners[None, 2:] - frequencies[:, None]) / np.diff(corners)[1:]
    triangles = np.maximum(0.0, np.minimum(rise, fall))
    return np.asarray(triangles * (2.0 / (corners[2:] - corners[:-2])), np.float64)


def log_mel(wave: Waveform, spec: LogMelSpec, sample_rate_hz: int) -> Features:
    """Return the features of a waveform, [mel bins, frames], cut off below its loudest part."""
    return _finished(_levels(wave, len(wave) // spec.hop_samples, spec, sample_rate_hz))


def chunk_features(wave: Waveform, spec: LogMelSpec, sample_rate_hz: int) -> Features:
    """Return the features of a clip's first chunk, silence added up to the chunk's end."""
    chunk = wave[: spec.chunk_samples]
    padded = np.pad(chunk, (0, spec.chunk_samples - len(chunk)))
    frames = spec.chunk_samples // spec.hop_samples
    # A frame reaches half a window to both sides. What hears silence alone needs no spectrum.
    heard = min(frames, -(-(len(chunk) + spec.fft_samples // 2) // spec.hop_samples) + 1)
    levels = np.full((frames, spec.mel_bins), np.log10(_POWER_FLOOR), np.float32)
    levels[:heard] = _levels(padded, heard, spec, sample_rate_hz)
    return _finished(levels)


def _levels(
    wave: Waveform, count: int, spec: LogMelSpec, sample_rate_hz: int
) -> NDArray[np.float32]:
    """Return the logarithms of the first `count` frames' powers, [frames, mel bins]."""
    padded = np.pad(wave, spec.fft_samples // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.fft_samples)
    frames = frames[:: spec.hop_samples][:count]
    # Periodic, as it is for spectra: one more sample would close the period.
    window = np.hanning(spec.fft_samples + 1)[:-1]
    filters = mel_filters(spec.mel_bins, spec.fft_samples, sample_rate_hz)
    levels = np.empty((len(frames), spec.mel_bins), np.float32)
    for first in range(0, len(frames), _BLOCK_FRAMES):
        block = slice(first, first + _BLOCK_FRAMES)
        spectra = np.fft.rfft(frames[block] * window)
        powers = (spectra.real**2 + spectra.imag**2) @ filters
        levels[block] = np.log10(np.maximum(powers, _POWER_FLOOR))
    return levels


def _finished(levels: NDArray[np.float32]) -> Features:
    cut = np.maximum(levels, levels.max() - _RANGE_DECADES)
    return np.ascontiguousarray((cut.T + 4.0) / 4.0, np.float32)
