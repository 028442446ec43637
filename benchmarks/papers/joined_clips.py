"""Clips strung together, and whether one of them is lost or told twice at a seam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from speechquant.core.audio import Waveform, read_audio
from speechquant.core.manifests import LabelledClip
from speechquant.core.text import normalizer
from speechquant.core.wer import score_wer
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.whisper_model import CHUNK_SECONDS

_normalize = normalizer("basic")


@dataclass(frozen=True)
class JoinedErrors:
    """The word error rates clip by clip and strung together, and what was lost or told twice."""

    alone: float
    joined: float
    lost_clips: int
    repeated_words: int

    @property
    def rates(self) -> tuple[str, str, str]:
        """Both rates and their difference, as tables show them."""
        alone, joined = 100 * self.alone, 100 * self.joined
        return f"{alone:.2f} %", f"{joined:.2f} %", f"{joined - alone:+.2f}"


def lost_and_repeated(clips: Sequence[str], heard: str) -> tuple[int, int]:
    """Return how many of the clips are missing from `heard`, and the words told twice in it.

    A clip is missing where none of its words is there, right or wrong. Told twice are words that
    nobody said and that are those before or after them again.
    """
    import jiwer

    words, starts = heard.split(), [0, *accumulate(len(clip.split()) for clip in clips)]
    output = jiwer.process_words(" ".join(clips), heard)
    missed: set[int] = set()
    repeated = 0
    for chunk in output.alignments[0]:
        first, last = chunk.hyp_start_idx, chunk.hyp_end_idx
        if chunk.type == "delete":
            missed.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
        elif chunk.type == "insert":
            count, added = last - first, words[first:last]
            before, after = words[max(first - count, 0) : first], words[last : last + count]
            repeated += count * (added in (before, after))
    lost = sum(
        start < end and missed.issuperset(range(start, end)) for start, end in pairwise(starts)
    )
    return lost, repeated


@dataclass(frozen=True)
class Lot:
    """Clips that are strung together."""

    clips: tuple[LabelledClip, ...]
    waves: tuple[Waveform, ...]
    pause_seconds: float

    @property
    def wave(self) -> Waveform:
        """All of them, each with the pause behind it."""
        pause = np.zeros(round(self.pause_seconds * SAMPLE_RATE_HZ), np.float32)
        return np.concatenate([part for wave in self.waves for part in (wave, pause)])

    @property
    def chunks(self) -> list[Waveform]:
        """As many as go into a chunk strung together, one chunk behind the other."""
        chunks: list[Waveform] = []
        for wave in self.waves:
            if chunks and len(chunks[-1]) + len(wave) <= CHUNK_SECONDS * SAMPLE_RATE_HZ:
                chunks[-1] = np.concatenate([chunks[-1], wave])
            else:
                chunks.append(wave)
        return chunks

    @property
    def references(self) -> list[str]:
        """What is said in each of them, as it is scored."""
        return [_normalize(clip.text or "") for clip in self.clips]


def lots_of(
    clips: Sequence[LabelledClip], seconds: float, pause_seconds: float = 0.0
) -> Iterator[Lot]:
    """Yield clips one behind the other, just over `seconds` at a time; those left over are not."""
    pause = round(pause_seconds * SAMPLE_RATE_HZ)
    taken: list[LabelledClip] = []
    waves: list[Waveform] = []
    for clip in clips:
        taken.append(clip)
        waves.append(read_audio(clip.audio, SAMPLE_RATE_HZ))
        if sum(len(wave) + pause for wave in waves) >= seconds * SAMPLE_RATE_HZ:
            yield Lot(tuple(taken), tuple(waves), pause_seconds)
            taken, waves = [], []


Transcribe = Callable[[Sequence[Waveform]], Sequence[str]]


def clip_by_clip(lot: Lot, transcribe: Transcribe) -> float:
    """Return the word error rate of the lot's clips one by one."""
    return score_wer(lot.references, list(map(_normalize, transcribe(lot.waves)))).rate


def joined_errors(lot: Lot, alone: float, heard: Sequence[str]) -> JoinedErrors:
    """Return what became of the lot's clips in what was `heard` of all, in one text or several.

    `alone` is the rate clip by clip.
    """
    text = _normalize(" ".join(heard))
    joined = score_wer([" ".join(lot.references)], [text]).rate
    return JoinedErrors(alone, joined, *lost_and_repeated(lot.references, text))
