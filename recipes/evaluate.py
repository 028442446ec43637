"""Word errors, character errors and real-time factor of a recognizer on a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speechquant.core.audio import Waveform, read_audio
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep, after
from speechquant.core.text import normalizer as normalizer_named
from speechquant.core.wer import ErrorRate, score_cer, score_wer
from speechquant.engines.recognizers import Recognizer

_CLIPS_AT_ONCE = 64
# An hour of samples is 230 MB, so many long clips must not be held together.
_SECONDS_AT_ONCE = 3600.0
_NANOSECONDS = 1e9


@dataclass(frozen=True)
class ClipResult:
    """What was said in one clip and what was heard, as they were compared."""

    name: str
    reference: str
    hypothesis: str
    errors: int
    reference_words: int


@dataclass(frozen=True)
class Evaluation:
    """The result of a whole data set; `compute_seconds` leaves the reading of files out."""

    words: ErrorRate
    characters: ErrorRate
    clips: tuple[ClipResult, ...]
    normalizer: str
    audio_seconds: float
    compute_seconds: float

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio."""
        return self.compute_seconds / self.audio_seconds

    def worst(self, count: int) -> list[ClipResult]:
        """Return the clips with the most word errors."""
        wrong = [clip for clip in self.clips if clip.errors]
        return sorted(wrong, key=lambda clip: (-clip.errors, clip.name))[:count]


def evaluate(
    recognizer: Recognizer,
    clips: Sequence[LabelledClip],
    *,
    normalizer: str = "basic",
    on_step: OnStep | None = None,
) -> Evaluation:
    """Transcribe every clip and count its errors; raises AudioError, ManifestError, OptionError."""
    normalize = normalizer_named(normalizer)
    references = [normalize(text_of(clip)) for clip in clips]
    rate = recognizer.spec.sample_rate_hz
    hypotheses: list[str] = []
    samples = nanoseconds = 0
    for waves in _groups(recognizer, clips):
        started = time.perf_counter_ns()
        heard = recognizer.transcribe(waves, after(len(hypotheses), len(clips), on_step))
        nanoseconds += time.perf_counter_ns() - started
        hypotheses += map(normalize, heard)
        samples += sum(map(len, waves))
    words = score_wer(references, hypotheses)
    return Evaluation(
        words=words,
        characters=score_cer(references, hypotheses),
        clips=tuple(
            ClipResult(
                str(clip.audio), reference, hypothesis, counts.errors, counts.reference_length
            )
            for clip, reference, hypothesis, counts in zip(
                clips, references, hypotheses, words.clips, strict=True
            )
        ),
        normalizer=normalizer,
        audio_seconds=samples / rate,
        compute_seconds=nanoseconds / _NANOSECONDS,
    )


def _groups(recognizer: Recognizer, clips: Sequence[LabelledClip]) -> Iterator[list[Waveform]]:
    """Yield the waveforms of all clips, as many as are held while they are batched by length."""
    rate = recognizer.spec.sample_rate_hz
    group: list[Waveform] = []
    for clip in clips:
        wave = read_audio(clip.audio, rate, recognizer.max_clip_seconds)
        recognizer.check(wave, str(clip.audio))
        group.append(wave)
        if len(group) == _CLIPS_AT_ONCE or sum(map(len, group)) >= _SECONDS_AT_ONCE * rate:
            yield group
            group = []
    if group:
        yield group


def text_of(clip: LabelledClip) -> str:
    """Return a clip's text; raises ManifestError where it has none."""
    if clip.text is None:
        raise ManifestError(f"{clip.audio}: has no text to compare with; add it to the data set")
    return clip.text
