"""Speech that a chunk's tokens say too little of: segments of few words, and gaps between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.engines.whisper.segments import FRAMES_PER_POSITION, TimedTokens

Voiced = NDArray[np.bool_]

# Features are a quarter of the power's logarithm: 30 dB below the loud parts of the chunk there is
# no speech any more.
_VOICE_RANGE = 3.0 / 4.0
_LOUD_PERCENTILE = 95.0
# Shorter ones are a slow word or a breath; a gap says nothing, so less of it is enough.
LEAST_THIN_SECONDS, LEAST_GAP_SECONDS = 5.0, 3.0


@dataclass(frozen=True)
class Stretch:
    """Frames of a chunk that a segment tells of, or, where it is None, no segment."""

    start: int
    end: int
    segment: TimedTokens | None = None


def voiced_frames(features: NDArray[np.float32]) -> Voiced:
    """Return which frames of a chunk are loud enough to be speech."""
    levels = features.max(axis=0)
    voiced: Voiced = levels > np.percentile(levels, _LOUD_PERCENTILE) - _VOICE_RANGE
    return voiced


def stretches_of(segments: Sequence[TimedTokens], frames: int) -> list[Stretch]:
    """Return the segments of a chunk's first frames and the gaps around them, in their order."""
    stretches, place = [], 0
    for segment in segments:
        start, end = (FRAMES_PER_POSITION * at for at in (segment.start, segment.end))
        if start > place:
            stretches.append(Stretch(place, start))
        stretches.append(Stretch(start, max(start, min(end, frames)), segment))
        place = max(place, end)
    if frames > place:
        stretches.append(Stretch(place, frames))
    return stretches


def says_too_little(
    stretch: Stretch, voiced: Voiced, frames_per_second: float, least_tokens_per_second: float
) -> bool:
    """Return whether a stretch has far fewer tokens than what is voiced of it would take."""
    seconds = float(voiced[stretch.start : stretch.end].sum()) / frames_per_second
    if stretch.segment is None:
        return least_tokens_per_second > 0 and seconds >= LEAST_GAP_SECONDS
    tokens = len(stretch.segment.tokens)
    return seconds >= LEAST_THIN_SECONDS and tokens < least_tokens_per_second * seconds
