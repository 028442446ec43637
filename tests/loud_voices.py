"""What is loud is a voice, in place of silero-vad, which takes noise for none."""

from __future__ import annotations

import numpy as np
import pytest

from speechquant.engines import families
from speechquant.engines.voice import recognizer
from speechquant.engines.voice.silero import FRAME_SAMPLES

RATE_HZ = 16_000


def take_loud_for_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognizer, "voice_probabilities", loud_frames)
    monkeypatch.setattr(recognizer, "require_silero", lambda: None)
    monkeypatch.setattr(families, "require_silero", lambda: None)


def loud_frames(wave: np.ndarray) -> np.ndarray:
    count = -(-len(wave) // FRAME_SAMPLES)
    frames = np.pad(wave, (0, count * FRAME_SAMPLES - len(wave))).reshape(count, FRAME_SAMPLES)
    return (np.abs(frames).max(axis=1) > 0.02).astype(np.float32)


def bursts(*stretches: tuple[float, bool], seed: int = 0) -> np.ndarray:
    """Noise and silence behind one another: (seconds, whether it is noise)."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            np.float32(0.1 * loud)
            * rng.standard_normal(round(seconds * RATE_HZ)).astype(np.float32)
            for seconds, loud in stretches
        ]
    )


SPARSE = bursts((3, False), (1.2, True), (4, False), (1.5, True), (2, False), (1.9, True), seed=1)
DENSE = bursts((5, True), seed=2)
SILENT = bursts((4, False))
