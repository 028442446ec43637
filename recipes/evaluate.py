"""Word errors, character errors and real-time factor of a recognizer on a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from speechquant.core.audio import Waveform, read_audio
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep, after
from speechquant.core.text import normalizer as normalizer_named
from speechquant.core.wer import ErrorRate, score_cer, score_wer
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.session import load_source
from speechquant.recipes.executors.options import ExecutorOptions, opened_workers
from speechquant.recipes.executors.task import Place
from speechquant.recipes.tasks import audio_files

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
    """The result of a whole data set.

    `compute_seconds` leaves the reading of files out and adds up those of all workers. `provider`
    is what workers ran it on.
    """

    words: ErrorRate
    characters: ErrorRate
    clips: tuple[ClipResult, ...]
    normalizer: str
    audio_seconds: float
    compute_seconds: float
    workers: int = 1
    provider: str | None = None

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of computing per second of audio, None of workers that slow each other."""
        return self.compute_seconds / self.audio_seconds if self.workers == 1 else None

    def worst(self, count: int) -> list[ClipResult]:
        """Return the clips with the most word errors."""
        wrong = [clip for clip in self.clips if clip.errors]
        return sorted(wrong, key=lambda clip: (-clip.errors, clip.name))[:count]


@dataclass(frozen=True)
class Heard:
    """The texts of some clips, and what hearing them took."""

    texts: tuple[str, ...]
    samples: int
    nanoseconds: int
    provider: str | None = None


@dataclass(frozen=True)
class Listening:
    """An evaluation's task: its jobs are places of clips that are heard together."""

    folder: Path
    clips: tuple[LabelledClip, ...]
    provider: str | None = None
    threads: int | None = None
    decoding: DecodingOptions | None = None

    @property
    def files(self) -> list[Path]:
        """The audio."""
        return audio_files(self.clips)

    @property
    def jobs(self) -> list[range]:
        """All clips, as `evaluate` takes them together."""
        total = len(self.clips)
        starts = range(0, total, _CLIPS_AT_ONCE)
        return [range(start, min(start + _CLIPS_AT_ONCE, total)) for start in starts]

    def placed(self, place: Place) -> Listening:
        """Return the task as a worker at `place` has to do it."""
        return replace(
            self,
            folder=place.folder or self.folder,
            clips=place.clips(self.clips),
            threads=place.threads,
        )

    @contextmanager
    def opened(self) -> Iterator[Callable[[Sequence[int]], Heard]]:
        """Yield what hears some clips in this process."""
        with open_recognizer(
            self.folder, provider=self.provider, threads=self.threads, decoding=self.decoding
        ) as recognizer:
            yield lambda places: replace(
                _heard(recognizer, [self.clips[place] for place in places]),
                provider=recognizer.provider,
            )


def evaluate_over(
    task: Listening,
    executor: ExecutorOptions,
    *,
    normalizer: str = "basic",
    on_step: OnStep | None = None,
) -> Evaluation:
    """Count the errors of a bundle or engine, its clips spread over workers."""
    if executor.is_this_process:
        with open_recognizer(
            task.folder, provider=task.provider, threads=task.threads, decoding=task.decoding
        ) as recognizer:
            return evaluate(recognizer, task.clips, normalizer=normalizer, on_step=on_step)
    references = _references(task.clips, normalizer)
    rate = load_source(task.folder).spec.sample_rate_hz
    jobs, parts, done = task.jobs, dict[int, Heard](), 0
    with opened_workers(task, executor) as workers:
        for place, part in workers.completed(jobs):
            parts[place] = part
            done += len(jobs[place])
            if on_step is not None:
                on_step(done, len(task.clips))
    heard = [parts[place] for place in range(len(jobs))]
    evaluation = _evaluation_of(task.clips, references, heard, normalizer, rate)
    return replace(evaluation, workers=workers.count, provider=heard[0].provider)


def evaluate(
    recognizer: Recognizer,
    clips: Sequence[LabelledClip],
    *,
    normalizer: str = "basic",
    on_step: OnStep | None = None,
) -> Evaluation:
    """Transcribe every clip and count its errors; raises AudioError, ManifestError, OptionError."""
    references = _references(clips, normalizer)
    heard = _heard(recognizer, clips, on_step)
    rate = recognizer.spec.sample_rate_hz
    return _evaluation_of(clips, references, [heard], normalizer, rate)


def _references(clips: Sequence[LabelledClip], normalizer: str) -> list[str]:
    normalize = normalizer_named(normalizer)
    return [normalize(text_of(clip)) for clip in clips]


def _heard(
    recognizer: Recognizer, clips: Sequence[LabelledClip], on_step: OnStep | None = None
) -> Heard:
    texts: list[str] = []
    samples = nanoseconds = 0
    for waves in _groups(recognizer, clips):
        started = time.perf_counter_ns()
        texts += recognizer.transcribe(waves, after(len(texts), len(clips), on_step))
        nanoseconds += time.perf_counter_ns() - started
        samples += sum(map(len, waves))
    return Heard(tuple(texts), samples, nanoseconds)


def _evaluation_of(
    clips: Sequence[LabelledClip],
    references: Sequence[str],
    heard: Sequence[Heard],
    normalizer: str,
    rate_hz: int,
) -> Evaluation:
    normalize = normalizer_named(normalizer)
    hypotheses = [normalize(text) for part in heard for text in part.texts]
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
        audio_seconds=sum(part.samples for part in heard) / rate_hz,
        compute_seconds=sum(part.nanoseconds for part in heard) / _NANOSECONDS,
    )


def _groups(recognizer: Recognizer, clips: Sequence[LabelledClip]) -> Iterator[list[Waveform]]:
    """Yield the waveforms of all clips, as many as are held while they are batched by length.

    Every so many clips a group ends, wherever the last one began: there a worker's job ends too.
    """
    rate = recognizer.spec.sample_rate_hz
    group: list[Waveform] = []
    for number, clip in enumerate(clips, 1):
        wave = read_audio(clip.audio, rate, recognizer.max_clip_seconds)
        recognizer.check(wave, str(clip.audio))
        group.append(wave)
        is_full = sum(map(len, group)) >= _SECONDS_AT_ONCE * rate
        if is_full or number % _CLIPS_AT_ONCE == 0:
            yield group
            group = []
    if group:
        yield group


def text_of(clip: LabelledClip) -> str:
    """Return a clip's text; raises ManifestError where it has none."""
    if clip.text is None:
        raise ManifestError(f"{clip.audio}: has no text to compare with; add it to the data set")
    return clip.text
