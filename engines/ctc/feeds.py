"""From audio to what the graph of a CTC model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Audio, Waveform, check_samples, read_audio, refuse_too_long
from speechquant.core.ctc import CtcSpec
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import AudioError

# In one call. Attention holds scores of frames x frames for every head: at 120 s those are 2.3 GB
# in a large model, at two hours 8 TB.
MAX_CLIP_SECONDS = 120.0
_TRIAL_SECONDS = 2.0
_VARIANCE_FLOOR = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor


def require_usable(spec: CtcSpec, wave: Waveform, name: str, limits: Limits | None = None) -> None:
    """Raise AudioError, naming the clip, where a model of `spec` cannot take `wave`.

    `limits`, in samples, are those of an engine that was built for some lengths only.
    """
    if wave.ndim != 1:
        raise AudioError(f"{name}: has shape {wave.shape}; give mono samples, one dimension")
    check_samples(wave, name)
    rate = spec.sample_rate_hz
    if len(wave) < spec.min_samples:
        raise AudioError(
            f"{name}: its length is {len(wave)} at {rate} Hz, the model needs at least "
            f"{spec.min_samples} samples ({1000 * spec.min_samples / rate:.0f} ms); "
            "leave the clip out"
        )
    refuse_too_long(name, len(wave) / rate, MAX_CLIP_SECONDS)
    if limits is not None and not limits.least <= len(wave) <= limits.most:
        raise AudioError(
            f"{name}: lasts {len(wave) / rate:.2f} s, the engine was built for "
            f"{limits.least / rate:.2f} to {limits.most / rate:.2f} s; build it with other "
            "--lengths, or leave the clip out"
        )


def read_clip(spec: CtcSpec, audio: Audio, limits: Limits | None = None) -> Waveform:
    """Return a file or a part of it as a model of `spec` takes it; raises AudioError."""
    wave = read_audio(audio, spec.sample_rate_hz, MAX_CLIP_SECONDS)
    require_usable(spec, wave, str(audio), limits)
    return wave


def _normalized(wave: Waveform) -> Waveform:
    centred = wave - wave.mean(dtype=np.float64)
    return np.asarray(centred / np.sqrt(wave.var(dtype=np.float64) + _VARIANCE_FLOOR), np.float32)


def feeds_of(spec: CtcSpec, waves: Sequence[Waveform]) -> dict[str, NDArray[Any]]:
    """Return what the graph takes for a batch of waveforms: padded samples and their lengths."""
    lengths = np.array([len(wave) for wave in waves], np.int64)
    padded = np.zeros((len(waves), int(lengths.max())), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = _normalized(wave) if spec.normalize_waveform else wave
    return {"input_values": padded, "input_lengths": lengths}


def trial_feeds(spec: CtcSpec) -> dict[str, NDArray[Any]]:
    """Return seeded noise on which the ranges of a graph's values can be seen."""
    samples = round(_TRIAL_SECONDS * spec.sample_rate_hz)
    noise = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    # The second clip is shorter, so that what masks its padding is at work too.
    return feeds_of(spec, [noise[0], noise[1, : samples // 2]])
