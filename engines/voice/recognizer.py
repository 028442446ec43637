"""A recognizer that hears only where somebody speaks, in pieces that are heard together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform, check_samples, refuse_too_long
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import AudioError, OptionError
from speechquant.core.progress import OnStep
from speechquant.core.specs import Spec
from speechquant.core.transcripts.languages import UNSPACED
from speechquant.core.transcripts.records import Segment, Transcript, Word
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.recognizers import FilesAndTexts, Hearing, Recognizer
from speechquant.engines.runners import Session
from speechquant.engines.voice.pieces import Piece, pieces_of, voices_in
from speechquant.engines.voice.silero import SAMPLE_RATE_HZ, require_silero, voice_probabilities

_PIECES_AT_ONCE = 8


@dataclass(eq=False)
class VoicedHearing:
    """A clip on its way, as its pieces; those behind the first wait for the first one's language.

    `waves` are the pieces' samples, `heard` those pieces that were begun.
    """

    pieces: Sequence[Piece]
    waves: Sequence[Waveform]
    options: DecodingOptions
    heard: list[Hearing] = field(default_factory=list)

    @property
    def key(self) -> Hashable:
        """What clips share that can go on together."""
        return self.options

    @property
    def is_done(self) -> bool:
        """Whether all of it was heard."""
        return len(self.heard) == len(self.pieces) and all(one.is_done for one in self.heard)

    @property
    def share_done(self) -> float:
        """How much of it was heard, of 1."""
        if not self.pieces:
            return 1.0
        return sum(one.share_done for one in self.heard) / len(self.pieces)


class VoicedRecognizer(FilesAndTexts):
    """A recognizer around another one; a context manager.

    Where it is asked to, it cuts clips at their pauses with silero-vad, and has their pieces heard
    together. Else it hands clips on as they are. Raises MissingPackageError, OptionError.
    """

    def __init__(self, inner: Recognizer, decoding: DecodingOptions) -> None:
        require_silero()
        rate = inner.spec.sample_rate_hz
        if rate != SAMPLE_RATE_HZ:
            raise OptionError(
                f"--vad hears {SAMPLE_RATE_HZ} Hz and the model {rate} Hz; leave --vad away"
            )
        self._inner, self._options = inner, decoding

    @property
    def spec(self) -> Spec:
        """What the model is."""
        return self._inner.spec

    @property
    def session(self) -> Session | Seq2SeqSession:
        """What runs the model's graphs."""
        return self._inner.session

    @property
    def provider(self) -> str:
        """What the session runs on."""
        return self._inner.provider

    @property
    def max_clip_seconds(self) -> float:
        """The longest clip that it takes."""
        return self._inner.max_clip_seconds

    @property
    def takes_timestamps(self) -> bool:
        """Whether it can be asked for segments with their times."""
        return self._inner.takes_timestamps

    @property
    def gives_words(self) -> bool:
        """Whether it tells when each word is said."""
        return self._inner.gives_words

    @property
    def samples_at_once(self) -> Limits:
        """What one call may hear."""
        return self._inner.samples_at_once

    def __enter__(self) -> VoicedRecognizer:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    def check(self, wave: Waveform, name: str) -> None:
        """Raise AudioError, naming the clip, where nothing can be made of `wave`."""
        if not self._options.vad:
            self._inner.check(wave, name)
            return
        if wave.ndim != 1:
            raise AudioError(f"{name}: has shape {wave.shape}; give mono samples, one dimension")
        check_samples(wave, name)
        refuse_too_long(name, len(wave) / SAMPLE_RATE_HZ, self.max_clip_seconds)

    def recognize(
        self,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[Transcript]:
        """Return the text of each mono waveform, and its segments and words in its own time."""
        asked = decoding or self._options
        if not asked.vad:
            return self._inner.recognize(waveforms, on_step, decoding=asked)
        waves = [np.asarray(wave, np.float32) for wave in waveforms]
        for index, wave in enumerate(waves):
            self.check(wave, f"waveform {index}")
        clips = [self._cut(wave, asked) for wave in waves]
        progress = _Progress(clips, on_step)
        # The first piece of each tells its language, in which the others are heard.
        firsts = [clip for clip in clips if clip.waves]
        heard = self._inner.recognize(
            [clip.waves[0] for clip in firsts], progress.after(0), decoding=_inner_options(asked)
        )
        found = {id(clip): [one] for clip, one in zip(firsts, heard, strict=True)}
        done = len(firsts)
        for language in dict.fromkeys(one.language for one in heard):
            same = [clip for clip in firsts if found[id(clip)][0].language == language]
            rest = [(clip, wave) for clip in same for wave in clip.waves[1:]]
            further = self._inner.recognize(
                [wave for _, wave in rest],
                progress.after(done),
                decoding=_inner_options(asked, language),
            )
            done += len(rest)
            for (clip, _), one in zip(rest, further, strict=True):
                found[id(clip)].append(one)
        return [_joined(clip.pieces, found.get(id(clip), [])) for clip in clips]

    def check_asked(self, decoding: DecodingOptions) -> None:
        """Raise OptionError where the model cannot be asked so."""
        self._inner.check_asked(_inner_options(decoding))

    def begin(self, wave: Waveform, decoding: DecodingOptions) -> Hearing:
        """Return a clip of which nothing is heard; raises AudioError, OptionError."""
        if not decoding.vad:
            return self._inner.begin(wave, decoding)
        self.check_asked(decoding)
        self.check(wave, "the clip")
        return self._cut(wave, decoding)

    def advance(self, hearings: Sequence[Any]) -> None:
        """Hear the next pieces of each clip."""
        if not isinstance(hearings[0], VoicedHearing):
            self._inner.advance(hearings)
            return
        share = max(1, _PIECES_AT_ONCE // len(hearings))
        under_way = [one for clip in hearings for one in self._next_pieces(clip, share)]
        for key in dict.fromkeys(one.key for one in under_way):
            self._inner.advance([one for one in under_way if one.key == key])

    def heard(self, hearing: Any) -> Transcript:
        """Return what was heard of a clip so far."""
        if not isinstance(hearing, VoicedHearing):
            return self._inner.heard(hearing)
        done = list(takewhile(lambda one: one.is_done, hearing.heard))
        return _joined(hearing.pieces, [self._inner.heard(one) for one in done])

    def _cut(self, wave: Waveform, asked: DecodingOptions) -> VoicedHearing:
        limits = self.samples_at_once
        voices = voices_in(voice_probabilities(wave), limits.most)
        pieces = pieces_of(voices, len(wave), limits.most)
        waves = [piece.of(wave) for piece in pieces]
        padded = [np.pad(one, (0, max(0, limits.least - len(one)))) for one in waves]
        return VoicedHearing(pieces, padded, asked)

    def _next_pieces(self, clip: VoicedHearing, most: int) -> list[Hearing]:
        """Return pieces of a clip that are not done; begins further ones, so many in all."""
        language = self._inner.heard(clip.heard[0]).language if clip.heard else None
        unfinished = [one for one in clip.heard if not one.is_done]
        room = most - len(unfinished) if clip.heard else 1
        begun = len(clip.heard)
        for wave in clip.waves[begun : begun + max(0, room)]:
            unfinished.append(self._inner.begin(wave, _inner_options(clip.options, language)))
            clip.heard.append(unfinished[-1])
        return unfinished[:most]


class _Progress:
    """Counts pieces as parts of their clips."""

    def __init__(self, clips: Sequence[VoicedHearing], on_step: OnStep | None) -> None:
        self._clips, self._on_step = len(clips), on_step
        self._pieces = sum(len(clip.pieces) for clip in clips)

    def after(self, pieces: int) -> OnStep | None:
        """Return what counts the steps behind so many pieces."""
        on_step, clips, total = self._on_step, self._clips, max(1, self._pieces)
        if on_step is None:
            return None
        return lambda done, _: on_step(clips * (pieces + done) / total, clips)


def _inner_options(asked: DecodingOptions, language: str | None = None) -> DecodingOptions:
    return replace(asked, vad=False, language=asked.language or language)


def _joined(pieces: Sequence[Piece], heard: Sequence[Transcript]) -> Transcript:
    """Return the transcript of a clip from those of its first pieces."""
    language = heard[0].language if heard else None
    space = "" if language in UNSPACED else " "
    pairs = list(zip(pieces, heard, strict=False))
    return Transcript(
        space.join(one.text for one in heard if one.text),
        tuple(_moved(word, piece) for piece, one in pairs for word in one.words),
        tuple(_segment(segment, piece) for piece, one in pairs for segment in one.segments),
        language,
    )


Timed = TypeVar("Timed", Word, Segment)


def _moved(timed: Timed, piece: Piece) -> Timed:
    return replace(
        timed, start=piece.time_of(timed.start), end=piece.time_of(timed.end, is_end=True)
    )


def _segment(segment: Segment, piece: Piece) -> Segment:
    moved = _moved(segment, piece)
    if segment.decoding is None:
        return moved
    start = piece.time_of(segment.decoding.chunk_start)
    return replace(moved, decoding=replace(segment.decoding, chunk_start=start))
