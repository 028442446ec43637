"""From waveforms to texts, with nothing but NumPy around a session."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform, check_samples, refuse_too_long
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.engine_folders import Engine, Limits
from speechquant.core.errors import EngineError, OptionError
from speechquant.core.progress import OnStep
from speechquant.core.transcripts.records import Transcript, Word
from speechquant.engines.build_options import BATCH, SAMPLES
from speechquant.engines.ctc.decoding import CtcDecoder, SpokenWord
from speechquant.engines.ctc.feeds import MAX_CLIP_SECONDS, feeds_of, require_usable
from speechquant.engines.ctc.windows import (
    Labels,
    Windows,
    only_window,
    stitched,
    window_samples,
    windows_over,
)
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.recognizers import FilesAndTexts
from speechquant.engines.runners import Session
from speechquant.engines.session import load_source, open_session

# A clip that is longer than one call may hear is heard in windows; it is in memory as a whole.
_MAX_LONG_SECONDS = 4 * 3600.0
# What one batch may hold, its padding counted; more does not make a CPU any faster.
_BATCH_SECONDS = 60.0
# Clips of one batch are padded to the longest; beyond this ratio the padding costs too much.
_LONGEST_TO_SHORTEST = 1.25


@dataclass(eq=False)
class CtcHearing:
    """A clip and the labels that were heard in its first windows, by frame."""

    wave: Waveform
    windows: Windows
    labels: list[Labels] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether all of it was heard."""
        return len(self.labels) == len(self.windows.starts)

    @property
    def share_done(self) -> float:
        """How much of it was heard, of 1."""
        return len(self.labels) / len(self.windows.starts)

    @property
    def key(self) -> Hashable:
        """What clips share whose next windows are of about one length."""
        return int(math.log(self.windows.samples, _LONGEST_TO_SHORTEST))

    def next_piece(self) -> Waveform:
        """Return what is heard next."""
        return self.windows.piece(self.wave, len(self.labels))


class CtcRecognizer(FilesAndTexts):
    """A session with what goes before and after it; a context manager."""

    max_clip_seconds = _MAX_LONG_SECONDS

    def __init__(self, bundle: Bundle, session: Session, limits: Limits | None = None) -> None:
        self.spec = bundle.spec_as(CtcSpec)
        self.session = session
        self._limits = limits
        self._source = bundle
        self._decoder = CtcDecoder.from_bundle(bundle)

    @property
    def provider(self) -> str:
        """What the session runs on."""
        return self.session.provider

    @property
    def takes_timestamps(self) -> bool:
        """Whether it can be asked for segments with their times."""
        return False

    @property
    def gives_words(self) -> bool:
        """Whether it tells when each word is said."""
        return True

    @property
    def samples_at_once(self) -> Limits:
        """What a window holds, where the engine takes one."""
        window, least = window_samples(self.spec), self.spec.min_samples
        if self._limits is None:
            return Limits(least, window, window)
        most = min(window, self._limits.most)
        least = max(least, self._limits.least)
        return Limits(least, max(most, least), max(most, least))

    def __enter__(self) -> CtcRecognizer:
        self.session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.__exit__(kind, error, trace)

    def check(self, wave: Waveform, name: str) -> None:
        """Raise AudioError, naming the clip, where the model cannot take `wave`."""
        if not self._is_long(wave):
            require_usable(self.spec, wave, name, self._limits)
            return
        check_samples(wave, name)
        refuse_too_long(name, len(wave) / self.spec.sample_rate_hz, self.max_clip_seconds)

    def _is_long(self, wave: Waveform) -> bool:
        """Whether a clip is heard in windows: too long for one call, which a window is not."""
        window, limits = window_samples(self.spec), self._limits
        most = MAX_CLIP_SECONDS * self.spec.sample_rate_hz
        if limits is not None:
            most = min(most, limits.most)
        fits = limits is None or limits.least <= window <= limits.most
        return wave.ndim == 1 and len(wave) > most and fits

    def recognize(
        self,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[Transcript]:
        """Return the text of each mono waveform and when each word was said."""
        require_askable(self._source, decoding)
        waves = [np.asarray(wave, np.float32) for wave in waveforms]
        for index, wave in enumerate(waves):
            self.check(wave, f"waveform {index}")
        clips = [self._hearing(wave) for wave in waves]
        for batch in self._batches([clip.windows.samples for clip in clips]):
            together = [clips[index] for index in batch]
            while left := [clip for clip in together if not clip.is_done]:
                self._hear(left)
                if on_step is not None:
                    on_step(sum(clip.share_done for clip in clips), len(clips))
        return [self.heard(clip) for clip in clips]

    def check_asked(self, decoding: DecodingOptions) -> None:
        """Raise OptionError where the model cannot be asked so."""
        require_askable(self._source, decoding)

    def begin(self, wave: Waveform, decoding: DecodingOptions) -> CtcHearing:
        """Return a clip that is not heard yet; raises AudioError, OptionError."""
        self.check_asked(decoding)
        self.check(wave, "the clip")
        return self._hearing(wave)

    def advance(self, hearings: Sequence[Any]) -> None:
        """Hear the next window of each clip."""
        for batch in self._batches([hearing.windows.samples for hearing in hearings]):
            self._hear([hearings[index] for index in batch])

    def heard(self, hearing: Any) -> Transcript:
        """Return what was heard of a clip so far."""
        if not hearing.labels:
            return Transcript("")
        labels = stitched(hearing.labels, hearing.windows, self.spec.decoding.blank)
        words = self._decoder.words_in(labels)
        # The last word of a window may go on in the next one.
        return self._transcript_of(words if hearing.is_done else words[:-1])

    def _hearing(self, wave: Waveform) -> CtcHearing:
        cut = windows_over if self._is_long(wave) else only_window
        return CtcHearing(wave, cut(self.spec, len(wave)))

    def _hear(self, clips: Sequence[CtcHearing]) -> None:
        """Hear the next window of each clip, all in one call."""
        feeds = feeds_of(self.spec, [clip.next_piece() for clip in clips])
        logits = self.session.run(feeds)["logits"]
        for clip, row in zip(clips, logits, strict=True):
            clip.labels.append(row[: clip.windows.frames].argmax(axis=-1))

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Yield the clips' indices in batches of about one length, of one only where it matters."""
        budget = _BATCH_SECONDS * self.spec.sample_rate_hz
        longest_beside = _LONGEST_TO_SHORTEST if self.spec.padding_exact else 1.0
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            is_full = lengths[index] * (len(batch) + 1) > budget
            if batch and (is_full or lengths[index] > longest_beside * lengths[batch[0]]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def transcripts_of(self, logits: NDArray[Any], lengths: Iterable[int]) -> list[Transcript]:
        """Return what the logits of a padded batch say, whose clips have `lengths` samples."""
        return [
            self._transcript_of(self._decoder.words_of(row[: self.spec.frames_of(int(length))]))
            for row, length in zip(logits, lengths, strict=True)
        ]

    def _transcript_of(self, words: Sequence[SpokenWord]) -> Transcript:
        return Transcript(
            " ".join(word.text for word in words), tuple(self._timed(word) for word in words)
        )

    def _timed(self, word: SpokenWord) -> Word:
        seconds_per_frame = math.prod(self.spec.conv_strides) / self.spec.sample_rate_hz
        start, end = word.first_frame * seconds_per_frame, (word.last_frame + 1) * seconds_per_frame
        return Word(word.text, round(start, 3), round(end, 3))


def open_ctc_recognizer(
    source: Bundle | Engine | str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    decoding: DecodingOptions | None = None,
    profile_to: Path | None = None,
) -> CtcRecognizer:
    """Return a recognizer on a bundle or an engine, as `open_session` takes them."""
    source = load_source(source)
    source.spec_as(CtcSpec)
    require_askable(source, decoding)
    # All that decoding reads of an engine is what a bundle has too.
    described = Bundle(source.folder, source.spec, source.files)
    limits = source.manifest.limits.get(SAMPLES) if isinstance(source, Engine) else None
    if isinstance(source, Engine):
        refuse_least_batch(source)
    session = open_session(source, provider=provider, threads=threads, profile_to=profile_to)
    return CtcRecognizer(described, session, limits)


def require_askable(source: Bundle | Engine, decoding: DecodingOptions | None) -> None:
    """Raise OptionError where anything is asked that only Whisper models know."""
    # The times of words are told whether they are asked for or not.
    if decoding is not None and replace(decoding, word_times=False) != DecodingOptions():
        raise OptionError(
            f"{source.folder}: not a Whisper model, which alone has a language, a task, "
            "timestamps, beams and prompts; leave these away"
        )


def refuse_least_batch(engine: Engine) -> None:
    """Raise EngineError where an engine cannot take one clip alone."""
    batch = engine.manifest.limits.get(BATCH)
    if batch is not None and batch.least > 1:
        raise EngineError(
            f"{engine.folder}: takes no fewer than {batch.least} clips at once, and the last ones "
            f"of a list may be fewer; build it with --batch 1,{batch.best},{batch.most}"
        )
