"""From waveforms to texts with a Whisper model: chunk by chunk, several clips at once."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform, check_samples, refuse_too_long
from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine, Limits
from speechquant.core.errors import AudioError, OptionError
from speechquant.core.progress import OnStep
from speechquant.core.seq2seq import STEP, Seq2SeqSpec
from speechquant.core.transcripts.languages import UNSPACED
from speechquant.core.transcripts.records import Decoding, Segment, Transcript, Word
from speechquant.engines.build_options import BATCH
from speechquant.engines.decoder_session import DecoderRun, Hidden, Seq2SeqSession
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.recognizers import FilesAndTexts
from speechquant.engines.session import open_decoder_session
from speechquant.engines.whisper.asking import TRANSCRIBE, require_known, tokenizer_of
from speechquant.engines.whisper.clips import Clip
from speechquant.engines.whisper.decoding import Asked, Decoded, decode
from speechquant.engines.whisper.log_mel import Features, chunk_features, log_mel
from speechquant.engines.whisper.segments import (
    FRAMES_PER_POSITION,
    TimedTokens,
    cut_at_timestamps,
    untold_start,
)
from speechquant.engines.whisper.token_rules import TokenRules
from speechquant.engines.whisper.untold import (
    Stretch,
    says_too_little,
    stretches_of,
    voiced_frames,
)
from speechquant.engines.whisper.word_times import TokenTime, timed_words, token_times

log = logging.getLogger(__name__)

# Its features are in memory as a whole: 32 kB a second.
MAX_CLIP_SECONDS = 4 * 3600.0
# What one batch of chunks may hold; the decoder reads all its weights for each token, whether of
# one clip or of many.
_BATCH_SECONDS = 240.0
# Text that was drawn at a higher one is not shown to the next chunk, as in openai/whisper.
_MOST_TRUSTED_TEMPERATURE = 0.5
# Half a level of 16 bits: nothing was recorded, and a model may invent words for it.
_SILENT_PEAK = 0.5 / 32_768


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a clip: its features, of which `frames` are sound, and those encoded."""

    clip: Clip
    frames: int
    features: Features
    hidden: Hidden


@dataclass(frozen=True)
class _Question:
    """What the decoder is given first, of one length; a transcript starts at its token `start`."""

    prompts: Sequence[Sequence[int]]
    timestamps: bool
    start: int = 0


@dataclass(frozen=True)
class _Told:
    """A segment, how it was decoded, and when its tokens are said.

    `start` is the frame of the chunk from which on it was heard.
    """

    piece: TimedTokens
    decoded: Decoded
    times: tuple[TokenTime, ...] = ()
    start: int = 0


class WhisperRecognizer(FilesAndTexts):
    """A session with what goes before and after it; a context manager."""

    max_clip_seconds = MAX_CLIP_SECONDS

    def __init__(
        self,
        source: Bundle | Engine,
        session: Seq2SeqSession,
        options: DecodingOptions | None = None,
    ) -> None:
        self.spec = source.spec_as(Seq2SeqSpec)
        self.session = session
        self._options = options or DecodingOptions()
        self._folder = source.folder
        self._most_rows = _most_rows(source)
        self.check_asked(self._options)
        self._tokenizer = tokenizer_of(source.folder)
        most = max(1, int(_BATCH_SECONDS / self.spec.chunk_seconds))
        self.most_clips = min(most, self._most_rows or most)
        self._initial_prompt = self._prompt_tokens(self._options.initial_prompt)

    @property
    def provider(self) -> str:
        """What the session runs on."""
        return self.session.provider

    @property
    def takes_timestamps(self) -> bool:
        """Whether it can be asked for segments with their times."""
        return self.spec.generation.first_timestamp is not None

    @property
    def gives_words(self) -> bool:
        """Whether it can be asked when each word is said."""
        return self.spec.gives_words

    @property
    def samples_at_once(self) -> Limits:
        """What one chunk holds."""
        chunk = self.spec.features.chunk_samples
        return Limits(1, chunk, chunk)

    def __enter__(self) -> WhisperRecognizer:
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
        if wave.ndim != 1:
            raise AudioError(f"{name}: has shape {wave.shape}; give mono samples, one dimension")
        check_samples(wave, name)
        seconds = len(wave) / self.spec.sample_rate_hz
        refuse_too_long(name, seconds, MAX_CLIP_SECONDS)
        features = self.spec.features
        is_long = len(wave) // features.hop_samples > features.chunk_frames
        if is_long and self.spec.generation.first_timestamp is None:
            raise AudioError(
                f"{name}: lasts {seconds:.1f} s, and the checkpoint has no timestamps to go on by "
                f"after {features.chunk_samples / self.spec.sample_rate_hz:g} s; cut the clip"
            )

    def asked(self, decoding: DecodingOptions) -> WhisperRecognizer:
        """Return a recognizer on the same session that is asked so; raises OptionError."""
        self.check_asked(decoding)
        other = copy(self)
        other._options = decoding
        if decoding.initial_prompt != self._options.initial_prompt:
            other._initial_prompt = self._prompt_tokens(decoding.initial_prompt)
        return other

    def recognize(
        self,
        waveforms: Sequence[NDArray[Any]],
        on_step: OnStep | None = None,
        *,
        decoding: DecodingOptions | None = None,
    ) -> list[Transcript]:
        """Return the text of each mono waveform, and its segments where timestamps are decoded."""
        if decoding is not None:
            return self.asked(decoding).recognize(waveforms, on_step)
        clips = []
        for index, wave in enumerate(np.asarray(wave, np.float32) for wave in waveforms):
            self.check(wave, f"waveform {index}")
            clips.append(self._clip(wave))
        done = 0
        for batch in self._batches(clips):
            while active := [clip for clip in batch if not clip.is_done]:
                self._advance(active)
                if on_step is not None:
                    on_step(done + sum(clip.share_done for clip in batch), len(clips))
            for clip in batch:
                clip.features = None
            done += len(batch)
        return [self._transcript(clip) for clip in clips]

    def check_asked(self, decoding: DecodingOptions) -> None:
        """Raise OptionError where the model cannot be asked so."""
        require_known(self.spec, decoding, self._folder)
        if self._most_rows is not None and decoding.beams > self._most_rows:
            raise OptionError(
                f"{self._folder}: takes a batch of at most {self._most_rows} and so as many beams; "
                f"build it with a larger --batch, or ask for fewer than {decoding.beams} beams"
            )

    def begin(self, wave: Waveform, decoding: DecodingOptions) -> Clip:
        """Return a clip of which nothing is decoded; raises AudioError, OptionError."""
        self.check(wave, "the clip")
        clip = self.asked(decoding)._clip(wave)
        if not clip.is_short:
            self._prepare(clip)
        return clip

    def advance(self, hearings: Sequence[Any]) -> None:
        """Decode the next chunk of each clip; all of one key."""
        asked = self.asked(hearings[0].options)
        size = asked._clips_at_once
        for first in range(0, len(hearings), size):
            asked._advance(hearings[first : first + size])
        for clip in hearings:
            if clip.is_done:
                clip.features = None

    def heard(self, hearing: Any) -> Transcript:
        """Return what was heard of a clip so far."""
        return self._transcript(hearing)

    def features_of_first_chunk(self, wave: Waveform) -> tuple[NDArray[np.float32], Clip]:
        """Return the features [1, mel bins, frames] of the first chunk, and the clip."""
        clip = self._clip(wave)
        return self._features(clip, min(clip.frames, self._chunk_frames))[None], clip

    def first_chunk(self, wave: Waveform) -> tuple[NDArray[np.float32], list[int]]:
        """Return the features [1, mel bins, frames] of the first chunk, its prompt and tokens."""
        features, clip = self.features_of_first_chunk(wave)
        return features, self.tokens_after(clip, features, self.session.encode(features))

    def tokens_after(
        self, clip: Clip, features: NDArray[np.float32], hidden: NDArray[np.float32]
    ) -> list[int]:
        """Return the prompt of a clip's first chunk, and its tokens; `hidden` is that encoded."""
        (decoded,) = self._decode([clip], features, hidden)
        return [*self._prompt(clip, timestamps=clip.has_timestamps), *decoded.tokens]

    def _clip(self, wave: Waveform) -> Clip:
        features = self.spec.features
        frames = max(1, len(wave) // features.hop_samples)
        is_short = frames <= features.chunk_frames
        language = self._options.language or self.spec.generation.language
        return Clip(wave, frames, is_short, self._options, language=language)

    def _batches(self, clips: Sequence[Clip]) -> Iterator[list[Clip]]:
        """Yield clips of about one length, whose chunks fit into one call."""
        by_length = sorted(clips, key=lambda clip: clip.frames)
        size = self._clips_at_once
        for _, same in groupby(by_length, key=lambda clip: clip.has_timestamps):
            group = list(same)
            for first in range(0, len(group), size):
                yield group[first : first + size]

    def _advance(self, clips: Sequence[Clip]) -> None:
        """Decode the next chunk of each clip."""
        lengths = [min(clip.frames - clip.place, self._chunk_frames) for clip in clips]
        speaking = [
            (clip, frames)
            for clip, frames in zip(clips, lengths, strict=True)
            if not self._is_silent(clip, frames)
        ]
        used: dict[int, int] = {}
        if speaking:
            features = np.stack([self._features(clip, frames) for clip, frames in speaking])
            hidden = self.session.encode(features)
            heard = self._decode([clip for clip, _ in speaking], features, hidden)
            for row, ((clip, frames), decoded) in enumerate(zip(speaking, heard, strict=True)):
                chunk = _Chunk(clip, frames, features[row], hidden[row : row + 1])
                used[id(clip)] = self._keep(chunk, decoded)
        for clip, frames in zip(clips, lengths, strict=True):
            if id(clip) not in used:
                clip.is_again = False
            clip.place += used.get(id(clip)) or frames

    @property
    def _clips_at_once(self) -> int:
        # A beam is a row of the decoder's batch, as a clip is.
        return max(1, self.most_clips // self._options.beams)

    @property
    def _chunk_frames(self) -> int:
        return self.spec.features.chunk_frames

    def _is_silent(self, clip: Clip, frames: int) -> bool:
        hop = self.spec.features.hop_samples
        samples = clip.wave[clip.place * hop : (clip.place + frames) * hop]
        return not len(samples) or float(np.abs(samples).max()) < _SILENT_PEAK

    def _features(self, clip: Clip, frames: int) -> Features:
        """Return the features of the clip's next chunk.

        A clip of one chunk ends in silence, a longer one in zeros, as the model's own code has it.
        """
        features = clip.features if clip.features is not None else self._prepare(clip)
        end = clip.place + (self._chunk_frames if clip.is_short else frames)
        piece = features[:, clip.place : end]
        return np.pad(piece, ((0, 0), (0, self._chunk_frames - piece.shape[1])))

    def _prepare(self, clip: Clip) -> Features:
        make = chunk_features if clip.is_short else log_mel
        clip.features = make(clip.wave, self.spec.features, self.spec.sample_rate_hz)
        return clip.features

    def _decode(
        self, clips: Sequence[Clip], features: NDArray[np.float32], hidden: NDArray[np.float32]
    ) -> list[Decoded]:
        """Return what is heard in a chunk of each clip, at the least temperature that will do."""
        begun = self._set_languages(clips, hidden)
        asked = [self._prompt(clip, timestamps=clip.has_timestamps) for clip in clips]
        timestamps = clips[0].has_timestamps
        before = [self._text_before(clip) for clip in clips]
        if not any(before):
            return self._decode_after(_Question(asked, timestamps), features, hidden, begun)
        # The tokens of a batch are not padded: those with as much text before are heard together.
        found: dict[int, Decoded] = {}
        for length in dict.fromkeys(map(len, before)):
            same = [index for index, text in enumerate(before) if len(text) == length]
            prompts = [[*before[index], *asked[index]] for index in same]
            question = _Question(prompts, timestamps, start=length)
            heard = self._decode_after(question, features[same], hidden[same])
            found.update(zip(same, heard, strict=True))
        return [found[index] for index in range(len(clips))]

    def _decode_after(
        self,
        question: _Question,
        features: NDArray[np.float32],
        hidden: Hidden,
        begun: DecoderRun | None = None,
    ) -> list[Decoded]:
        prompts = np.array(question.prompts, np.int64)
        rules = TokenRules(self.spec.generation, timestamps=question.timestamps)
        # Of the sound alone, so that no other clip changes what is drawn for this one.
        draws = [np.random.default_rng(zlib.crc32(chunk.tobytes())) for chunk in features]
        found: dict[int, Decoded] = {}
        left = list(range(len(prompts)))
        for temperature in self._options.temperatures:
            asked = Asked(
                prompts[left],
                temperature,
                [draws[index] for index in left],
                self._options.beams,
                question.start,
            )
            decoded = decode(self.session, hidden[left], asked, rules, self.spec.generation, begun)
            begun = None
            found.update(zip(left, decoded, strict=True))
            left = [index for index in left if self._is_doubtful(found[index])]
            if not left:
                break
        return [found[index] for index in range(len(prompts))]

    def _is_doubtful(self, decoded: Decoded) -> bool:
        if self._is_no_speech(decoded):
            return False
        return (
            self._compression(decoded) > self._options.most_compression
            or decoded.log_probability < self._options.least_log_probability
        )

    def _compression(self, decoded: Decoded) -> float:
        text = self._text(decoded.tokens).encode()
        return len(text) / len(zlib.compress(text)) if text else 0.0

    def _is_no_speech(self, decoded: Decoded) -> bool:
        return (
            decoded.no_speech > self._options.most_no_speech
            and decoded.log_probability < self._options.least_log_probability
        )

    def _set_languages(self, clips: Sequence[Clip], hidden: Hidden) -> DecoderRun | None:
        """Detect what languages are not known; return a run that heard all clips, if any did."""
        generation = self.spec.generation
        new = [index for index, clip in enumerate(clips) if clip.language is None]
        if not generation.languages or not new:
            return None
        starts = np.full((len(new), 1), generation.start, np.int64)
        run = self.session.start(hidden[new], starts)
        codes = list(generation.languages)
        numbers = [generation.languages[code] for code in codes]
        best = run.prompt_logits[:, -1, numbers].argmax(axis=-1)
        for index, choice in zip(new, best, strict=True):
            clips[index].language = codes[choice]
        return run if len(new) == len(clips) else None

    def _prompt(self, clip: Clip, *, timestamps: bool) -> list[int]:
        generation = self.spec.generation
        prompt = [generation.start]
        if clip.language is not None:
            prompt.append(generation.languages[clip.language])
        if generation.tasks:
            prompt.append(generation.tasks[self._options.task or generation.task or TRANSCRIBE])
        if generation.no_timestamps is not None and not timestamps:
            prompt.append(generation.no_timestamps)
        return prompt

    def _text_before(self, clip: Clip) -> list[int]:
        """Return the tokens in front of the prompt: what the text is to follow on."""
        generation, options = self.spec.generation, self._options
        previous = clip.shown if options.previous_text else []
        initial = self._initial_prompt
        if generation.start_of_previous is None or not (initial or previous):
            return []
        room = generation.max_tokens // 2 - 1
        initial = initial[-room:]
        kept = previous[max(0, len(previous) - (room - len(initial))) :]
        return [generation.start_of_previous, *initial, *kept]

    def _prompt_tokens(self, prompt: str | None) -> list[int]:
        text = (prompt or "").strip()
        if not text:
            return []
        # As a word in the middle of a text has a space in front.
        tokens = self._tokenizer.encode(f" {text}", add_special_tokens=False).ids
        return [token for token in tokens if token < self.spec.generation.end]

    def _token_times(
        self, prompt: Sequence[int], frames: int, decoded: Decoded, hidden: Hidden
    ) -> Iterator[TokenTime]:
        """Yield when each token is said that is no timestamp; nothing where nobody asked."""
        first = self.spec.generation.first_timestamp
        if not (self._options.word_times and decoded.tokens and first is not None):
            return
        tokens = np.array([[*prompt, *decoded.tokens]], np.int64)
        (attention,) = self.session.attention(hidden, tokens)
        positions = max(1, frames // FRAMES_PER_POSITION)
        times = token_times(attention[:, len(prompt) :, :positions])
        for token, time in zip(decoded.tokens, times, strict=True):
            if token < first:
                yield time

    def _keep(self, chunk: _Chunk, decoded: Decoded) -> int:
        """Add what was decoded to the clip; return how many frames that uses up."""
        clip, frames = chunk.clip, chunk.frames
        is_again, clip.is_again = clip.is_again, False
        if self._is_no_speech(decoded):
            return frames
        first = self.spec.generation.first_timestamp
        if first is None:
            clip.tokens += decoded.tokens
            clip.shown += decoded.tokens
            return frames
        start = untold_start(decoded.tokens, first)
        if start and clip.has_timestamps and not is_again:
            # Once, or silence that is told to begin a little later would be heard for ever.
            clip.is_again = True
            return FRAMES_PER_POSITION * start
        # Also where no timestamps were asked for: a model that gives them goes on from there.
        pieces, used = cut_at_timestamps(decoded.tokens, first, frames)
        prompt = self._prompt(clip, timestamps=clip.has_timestamps)
        times = self._token_times(prompt, frames, decoded, chunk.hidden)
        told = [_Told(piece, decoded, tuple(islice(times, len(piece.tokens)))) for piece in pieces]
        for one in self._mended(chunk, told, used):
            clip.tokens += one.piece.tokens
            clip.shown += _with_times(one.piece, first)
            if clip.has_timestamps and (segment := self._segment(clip, one)):
                clip.segments.append(segment)
            clip.words += self._words(clip, one)
        if decoded.temperature > _MOST_TRUSTED_TEMPERATURE:
            clip.shown.clear()
        return used

    def _mended(self, chunk: _Chunk, told: Sequence[_Told], used: int) -> Iterator[_Told]:
        """Yield what was told of a chunk, and in place of too little what is told of it alone."""
        least = self._options.least_tokens_per_second
        if least == 0:
            yield from told
            return
        voiced = voiced_frames(chunk.features[:, : chunk.frames])
        rate = self.spec.sample_rate_hz / self.spec.features.hop_samples
        by_piece = {id(one.piece): one for one in told}
        for stretch in stretches_of([one.piece for one in told], used):
            one = by_piece.get(id(stretch.segment))
            if says_too_little(stretch, voiced, rate, least):
                one = self._heard_again(chunk, stretch) or one
            if one is not None:
                yield one

    def _heard_again(self, chunk: _Chunk, stretch: Stretch) -> _Told | None:
        """Return what is told of a stretch of a chunk alone, None where that is no more.

        Without timestamps where the chunk had them, and the other way round: what leads a model to
        skip speech is most often a timestamp that comes too early, or is not there to come.
        """
        clip, generation = chunk.clip, self.spec.generation
        timestamps = not clip.has_timestamps
        piece = chunk.features[:, stretch.start : stretch.end]
        features = np.pad(piece, ((0, 0), (0, self._chunk_frames - piece.shape[1])))[None]
        hidden = self.session.encode(features)
        prompt = self._prompt(clip, timestamps=timestamps)
        (decoded,) = self._decode_after(_Question([prompt], timestamps), features, hidden)
        text = tuple(token for token in decoded.tokens if token < generation.end)
        before = len(stretch.segment.tokens) if stretch.segment is not None else 0
        is_speech = decoded.no_speech <= self._options.most_no_speech
        if len(text) <= before or not is_speech or self._is_doubtful(decoded):
            return None
        start, end = stretch.start // FRAMES_PER_POSITION, stretch.end // FRAMES_PER_POSITION
        times = self._token_times(prompt, stretch.end - stretch.start, decoded, hidden)
        moved = tuple(TokenTime(start + time.start, start + time.end) for time in times)
        return _Told(TimedTokens(text, start, end), decoded, moved, stretch.start)

    def _segment(self, clip: Clip, told: _Told) -> Segment | None:
        piece, decoded = told.piece, told.decoded
        text = self._text(piece.tokens)
        if not text:
            return None
        step, offset = self.spec.seconds_per_position, clip.place / FRAMES_PER_POSITION
        latest = len(clip.wave) / self.spec.sample_rate_hz
        start, end = ((offset + position) * step for position in (piece.start, piece.end))
        how = Decoding(
            tokens=piece.tokens,
            chunk_start=round((offset + told.start / FRAMES_PER_POSITION) * step, 3),
            temperature=decoded.temperature,
            log_probability=decoded.log_probability,
            compression=self._compression(decoded),
            no_speech=decoded.no_speech,
        )
        return Segment(text, round(min(start, latest), 3), round(min(end, latest), 3), how)

    def _words(self, clip: Clip, told: _Told) -> list[Word]:
        timed = [
            (token, time)
            for token, time in zip(told.piece.tokens, told.times, strict=False)
            if token < self.spec.generation.end
        ]
        words = timed_words(
            [token for token, _ in timed],
            [time for _, time in timed],
            self._tokenizer.decode,
            spaced=clip.language not in UNSPACED,
        )
        step, offset = self.spec.seconds_per_position, clip.place / FRAMES_PER_POSITION
        return [
            Word(
                word.text.strip(),
                round((offset + word.time.start) * step, 3),
                round((offset + word.time.end) * step, 3),
            )
            for word in words
            if word.text.strip()
        ]

    def _transcript(self, clip: Clip) -> Transcript:
        return Transcript(
            self._text(clip.tokens), tuple(clip.words), tuple(clip.segments), clip.language
        )

    def _text(self, tokens: Sequence[int]) -> str:
        end = self.spec.generation.end
        text: str = self._tokenizer.decode([token for token in tokens if token < end])
        return text.strip()


def _with_times(piece: TimedTokens, first_timestamp: int) -> list[int]:
    return [first_timestamp + piece.start, *piece.tokens, first_timestamp + piece.end]


def open_whisper_recognizer(
    source: Bundle | Engine,
    *,
    provider: str | None = None,
    threads: int | None = None,
    decoding: DecodingOptions | None = None,
    profile_to: Path | None = None,
) -> WhisperRecognizer:
    """Return a recognizer on a bundle or an engine, as `open_decoder_session` takes them."""
    # Before anything is loaded, which takes a moment.
    require_askable(source, decoding)
    session = open_decoder_session(
        source, provider=provider, threads=threads, profile_to=profile_to
    )
    return WhisperRecognizer(source, session, decoding)


def require_askable(source: Bundle | Engine, decoding: DecodingOptions | None) -> None:
    """Raise OptionError where the model cannot be asked so."""
    require_known(source.spec_as(Seq2SeqSpec), decoding or DecodingOptions(), source.folder)


def _most_rows(source: Bundle | Engine) -> int | None:
    """Return the largest batch of the decoder that an engine was built for, None for any."""
    limits = source.manifests[STEP].limits.get(BATCH) if isinstance(source, Engine) else None
    return None if limits is None else limits.most
