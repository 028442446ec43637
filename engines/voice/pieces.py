"""Where audio is cut: at pauses, into pieces that a model hears at once; pauses are left out."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.engines.voice.silero import FRAME_SAMPLES, SAMPLE_RATE_HZ, Probabilities

# A voice begins where it is as likely as the first, and ends where it is less likely than the
# second: silero-vad's own thresholds, and its least length of a voice and of a pause.
_BEGINS, _ENDS = 0.5, 0.35
_LEAST_VOICE_SECONDS, _LEAST_PAUSE_SECONDS = 0.25, 0.1
# What is kept of the pause on each side of a voice, as in faster-whisper: the first and the last
# sound of a word are soft.
_MARGIN_SECONDS = 0.4
# A piece is cut at the longest pause in so much of its end, as a part of the greatest length.
_CHOICE = 1 / 3


@dataclass(frozen=True)
class Span:
    """Samples from `start` on and before `end`."""

    start: int
    end: int

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.end - self.start


@dataclass(frozen=True)
class Piece:
    """Spans that are heard one behind the other, as if nothing were between them."""

    spans: tuple[Span, ...]

    def of(self, wave: Waveform) -> Waveform:
        """Return the samples of the piece."""
        return np.concatenate([wave[span.start : span.end] for span in self.spans])

    @cached_property
    def _ends(self) -> list[float]:
        return [total / SAMPLE_RATE_HZ for total in accumulate(span.samples for span in self.spans)]

    def time_of(self, seconds: float, *, is_end: bool = False) -> float:
        """Return where in the audio a time in the piece is; an end is in front of a cut."""
        find = bisect_left if is_end else bisect_right
        index = min(find(self._ends, seconds), len(self.spans) - 1)
        left = self._ends[index] - seconds
        return round(max(0.0, self.spans[index].end / SAMPLE_RATE_HZ - max(left, 0.0)), 3)


def voices_in(probabilities: Probabilities, most_samples: int) -> list[Span]:
    """Return where somebody speaks, between the pauses; none is longer than `most_samples`."""
    voiced = _with_hysteresis(probabilities)
    spans = _joined(_runs(voiced), _frames(_LEAST_PAUSE_SECONDS))
    long_enough = [span for span in spans if span.samples >= _frames(_LEAST_VOICE_SECONDS)]
    most = max(1, most_samples // FRAME_SAMPLES)
    frames = [part for span in long_enough for part in _split(span, probabilities, most)]
    return [Span(span.start * FRAME_SAMPLES, span.end * FRAME_SAMPLES) for span in frames]


def pieces_of(voices: Sequence[Span], total_samples: int, most_samples: int) -> list[Piece]:
    """Return the pieces of audio of `total_samples` with these voices, none longer than may be."""
    pieces = []
    first = 0
    while first < len(voices):
        last = first + _count_in_first_piece(voices[first:], total_samples, most_samples)
        before = voices[first - 1].end if first else None
        after = voices[last].start if last < len(voices) else None
        wide = _widened(voices[first:last], (before, after), total_samples)
        # One voice of the greatest length has no room for its margins.
        fits = _length(wide) <= most_samples
        pieces.append(Piece(tuple(wide if fits else voices[first:last])))
        first = last
    return pieces


def _frames(seconds: float) -> int:
    return max(1, round(seconds * SAMPLE_RATE_HZ / FRAME_SAMPLES))


def _with_hysteresis(probabilities: Probabilities) -> NDArray[np.bool_]:
    marks = np.where(probabilities >= _BEGINS, 1, np.where(probabilities < _ENDS, -1, 0))
    last = np.maximum.accumulate(np.where(marks != 0, np.arange(len(marks)), 0))
    voiced: NDArray[np.bool_] = marks[last] == 1
    return voiced


def _runs(voiced: NDArray[np.bool_]) -> list[Span]:
    edges = np.flatnonzero(np.diff(voiced.astype(np.int8), prepend=0, append=0))
    return [Span(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _joined(spans: Sequence[Span], least_pause: int) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        if joined and span.start - joined[-1].end < least_pause:
            joined[-1] = Span(joined[-1].start, span.end)
        else:
            joined.append(span)
    return joined


def _split(span: Span, probabilities: Probabilities, most: int) -> Iterator[Span]:
    """Yield a voice without a pause in parts, cut where a voice is least likely."""
    while span.samples > most:
        first = span.start + most // 2
        cut = first + int(probabilities[first : span.start + most].argmin()) + 1
        yield Span(span.start, cut)
        span = Span(cut, span.end)
    yield span


def _count_in_first_piece(voices: Sequence[Span], total: int, most: int) -> int:
    """Return how many voices go into a piece: all that fit, or those before the longest pause."""
    fits = 1
    while fits < len(voices) and _length(_widened(voices[: fits + 1], (None, None), total)) <= most:
        fits += 1
    if fits == len(voices):
        return fits
    pauses = [second.start - first.end for first, second in pairwise(voices[: fits + 1])]
    least = voices[fits - 1].end - round(_CHOICE * most)
    choices = [index for index in range(fits) if voices[index].end >= least]
    return max(choices, key=lambda index: (pauses[index], index)) + 1


def _length(spans: Sequence[Span]) -> int:
    return sum(span.samples for span in spans)


def _widened(
    voices: Sequence[Span], beside: tuple[int | None, int | None], total: int
) -> list[Span]:
    """Return voices with their margins; where two meet they are one, also with those `beside`."""
    margin = round(_MARGIN_SECONDS * SAMPLE_RATE_HZ)
    before, after = beside
    first = 0 if before is None else (before + voices[0].start) // 2
    last = total if after is None else (voices[-1].end + after) // 2
    wide = [
        Span(max(first, voice.start - margin), min(last, voice.end + margin)) for voice in voices
    ]
    return _joined(wide, 1)
