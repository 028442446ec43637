"""Real speech of any length: clips strung together, and pieces cut from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechquant.core.audio import Waveform, read_audio
from speechquant.core.manifests import LabelledClip


class TimingAudio:
    """The clips of a data set end to end, as many as the longest batch needs.

    Latency hangs on the shape alone for most graphs, but not where work depends on what is said, so
    it is timed on speech. A set that is too short is heard again from its start.
    """

    def __init__(self, clips: Sequence[LabelledClip], rate_hz: int, longest_seconds: float) -> None:
        self._rate_hz = rate_hz
        wanted, waves, held = int(longest_seconds * rate_hz), list[Waveform](), 0
        for clip in clips:
            waves.append(read_audio(clip.audio, rate_hz))
            held += len(waves[-1])
            if held >= wanted:
                break
        self._samples: Waveform = np.concatenate(waves)

    def pieces(self, seconds: float, batch: int) -> list[Waveform]:
        """Return `batch` pieces of exactly `seconds`, one after the other."""
        length = round(seconds * self._rate_hz)
        places = np.arange(batch * length) % len(self._samples)
        return list(self._samples[places].reshape(batch, length))
