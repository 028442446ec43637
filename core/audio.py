"""Audio files and parts of them as mono float32 waveforms at the rate a model wants."""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio_files.containers import (
    READ_FORMATS,
    OggStream,
    check_content,
    check_whole,
)
from speechquant.core.audio_files.members import AudioMember
from speechquant.core.audio_files.movies import (
    MOVIE_SUFFIXES,
    decoded_movie,
    is_movie,
    movie_seconds,
    told_seconds,
)
from speechquant.core.audio_files.mpeg import MpegStream
from speechquant.core.errors import AudioError, one_line
from speechquant.core.files import is_file

Waveform = NDArray[np.float32]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".opus"}) | MOVIE_SUFFIXES
# What is decoded before a part: a frame of these builds on those before it. 0.6 s is the longest
# that an mp3 reaches back (255 bytes at 8 kbit/s and 24 kHz), Opus gives the same bits after 0.3 s.
_LEAD_SECONDS = {"MP3": 1.0, "OGG": 1.0}
# Sent into the middle of an mp3 of a low rate, the decoder complains on stderr of what it lacks.
# From the start it does not, and so much takes it a second at most.
_FROM_START_SECONDS, _LOW_RATES_HZ = 600.0, range(32_000)
# An mp3's header may count a frame too many, and which samples an encoder added is not always told.
_UNSURE_FRAMES = 2
# What messages call audio that is no file.
_BYTES, _SAMPLES = "the audio given as bytes", "the audio given as samples"
_BLOCK_SAMPLES = 1 << 20
# Units a second in which the length of a movie is counted, as its samples' rate may not be told.
_MOVIE_UNITS = 1_000_000
# libsndfile's word for a length that a header does not tell.
_UNKNOWN_LENGTH = 1 << 62


# A file, or one inside another.
AudioFile = Path | AudioMember


@dataclass(frozen=True)
class AudioPart:
    """A part of a file; up to the file's end where `seconds` is None."""

    file: AudioFile
    offset_seconds: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.offset_seconds, self.seconds or 0.0))):
            raise AudioError(f"{self}: no part of a file; give seconds that are finite")

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.file} from {self.offset_seconds:g} s on"
        return f"{self.file} from {self.offset_seconds:g} s for {self.seconds:g} s"


# A whole file or a part of one; what either is called in messages is `str` of it.
Audio = AudioFile | AudioPart


@dataclass(frozen=True)
class Samples:
    """Samples in memory, [samples] or [samples, channels], and their rate."""

    values: NDArray[Any]
    rate_hz: int


@dataclass(frozen=True)
class _Length:
    """How long a file is."""

    samples: int
    rate_hz: int

    def span_of(self, audio: Audio) -> tuple[int, int]:
        """Return the first sample that is to be read and the one behind the last."""
        if not isinstance(audio, AudioPart):
            return 0, self.samples
        begin = round(audio.offset_seconds * self.rate_hz)
        end = self.samples
        if audio.seconds is not None:
            end = begin + round(audio.seconds * self.rate_hz)
        if not 0 <= begin <= end <= self.samples:
            raise AudioError(
                f"{audio}: not inside the file, which lasts {self.samples / self.rate_hz:.3f} s; "
                "give a part of it"
            )
        return begin, end


def check_samples(wave: Waveform, name: str) -> None:
    """Raise AudioError, naming the clip `name`, where `wave` is empty or not finite."""
    if wave.size == 0:
        raise AudioError(f"{name}: no samples; leave the clip out or record it again")
    finite = np.isfinite(wave)
    if not finite.all():
        first = int(np.argmin(finite))
        raise AudioError(
            f"{name}: sample {first} is {wave[first]}, and {int((~finite).sum()) - 1} more are not "
            f"finite; write the file again from its source"
        )


def resample(wave: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Return `wave` at `to_hz`."""
    if from_hz == to_hz:
        return wave
    import soxr

    return np.asarray(soxr.resample(wave, from_hz, to_hz), np.float32)


def read_audio(
    audio: Audio | bytes | Samples, sample_rate_hz: int, max_seconds: float | None = None
) -> Waveform:
    """Return a file, a part of it, its bytes or samples, channels averaged, at `sample_rate_hz`.

    Raises AudioError where the file is missing, no audio, truncated, or does not hold the part, and
    where what is read is empty, not finite, or longer than `max_seconds`.
    """
    if isinstance(audio, Samples):
        return _of_samples(audio, sample_rate_hz, max_seconds)
    if isinstance(audio, bytes):
        return read_audio(_Given(Path(), _BYTES, audio), sample_rate_hz, max_seconds)
    with _readable(audio) as content:
        channels, rate = _decode(audio, content, max_seconds)
    for channel in channels.T:
        check_samples(channel, str(audio))
    return resample(channels.mean(axis=1, dtype=np.float32), rate, sample_rate_hz)


def _of_samples(audio: Samples, sample_rate_hz: int, max_seconds: float | None) -> Waveform:
    channels = np.asarray(audio.values, np.float32)
    if channels.ndim not in (1, 2) or audio.rate_hz <= 0:
        raise AudioError(
            f"{_SAMPLES}: shape {channels.shape} at {audio.rate_hz} Hz; give [samples] or "
            "[samples, channels] and a rate above 0"
        )
    channels = channels if channels.ndim == 2 else channels[:, None]
    if max_seconds is not None:
        refuse_too_long(_SAMPLES, len(channels) / audio.rate_hz, max_seconds)
    for channel in channels.T:
        check_samples(channel, _SAMPLES)
    mono = channels.mean(axis=1, dtype=np.float32)
    return resample(mono, audio.rate_hz, sample_rate_hz)


@dataclass(frozen=True)
class _Given(AudioMember):
    """A file that is in memory already."""

    content: bytes

    def read(self) -> bytes:
        return self.content

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Content:
    """A file, or the bytes of one inside another, and what an mp3 or ogg is made of."""

    file: Path | bytes
    stream: MpegStream | OggStream | None

    def bytes_from(self, begin: int) -> bytes:
        """Return the file's bytes from one of them on."""
        return (self.file if isinstance(self.file, bytes) else self.file.read_bytes())[begin:]

    def opened(self) -> Any:
        """Return the file as libsndfile reads it."""
        import soundfile

        if isinstance(self.file, bytes):
            return soundfile.SoundFile(io.BytesIO(self.file))
        return soundfile.SoundFile(os.fsencode(self.file))


def audio_seconds(audio: Audio) -> float:
    """Return how long a file or a part of it is, by its header; raises AudioError."""
    with _readable(audio) as content:
        stream = content.stream
        if is_movie(content.file):
            seconds = movie_seconds(content.file, str(file_of(audio)))
            length = _Length(round(seconds * _MOVIE_UNITS), _MOVIE_UNITS)
        elif isinstance(stream, MpegStream) and not stream.tells_length:
            length = _Length(stream.samples, stream.rate_hz)
        else:
            with content.opened() as file:
                length = _length(audio, file)
    begin, end = length.span_of(audio)
    return (end - begin) / length.rate_hz


def file_of(audio: Audio) -> AudioFile:
    """Return the whole file."""
    return audio.file if isinstance(audio, AudioPart) else audio


@contextmanager
def _readable(audio: Audio) -> Iterator[_Content]:
    """Yield what is to be decoded, and turn whatever else is wrong with it into AudioError."""
    import soundfile

    file = file_of(audio)
    try:
        if isinstance(file, AudioMember):
            content = file.read()
            yield _Content(content, check_content(content, str(file)))
        elif is_file(file):
            yield _Content(file, check_whole(file))
        else:
            raise AudioError(f"{file}: no such audio file; check the path")
    except MemoryError as error:
        raise AudioError(f"{audio}: does not fit into memory; cut the file") from error
    # soundfile answers a suffix it takes for headerless samples with a TypeError.
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        # soundfile's whole message names the file as bytes, or as an object.
        reason = str(getattr(error, "error_string", one_line(error)))
        raise AudioError(f"{file}: cannot be read as audio ({reason}); {READ_FORMATS}") from error


def _length(audio: Audio, file: Any) -> _Length:
    if file.frames >= _UNKNOWN_LENGTH:
        raise AudioError(
            f"{file_of(audio)}: its header does not tell its length, as when it was written to a "
            "pipe; write it again to a file"
        )
    return _Length(file.frames, file.samplerate)


def _decode(
    audio: Audio, content: _Content, max_seconds: float | None
) -> tuple[NDArray[np.float32], int]:
    """Return the samples [time, channels] and their rate."""
    stream = content.stream
    if is_movie(content.file):
        return _decode_movie(audio, content.file, max_seconds)
    if isinstance(stream, MpegStream) and not stream.tells_length:
        return _decode_from_start(audio, content.bytes_from(stream.audio_at), stream, max_seconds)
    with content.opened() as file:
        length = _length(audio, file)
        begin, end = _span(audio, length, max_seconds)
        start = _start(begin, file, stream)
        if start:
            file.seek(start)
        mono = _averaged(file, end - start)[begin - start :]
    _check_count(audio, stream, end - begin, len(mono))
    return mono[:, None], length.rate_hz


def _averaged(file: Any, samples: int) -> NDArray[np.float32]:
    """Return the next samples, channels averaged; all channels of a block alone are in memory."""
    mono, count = np.empty(samples, np.float32), 0
    while count < samples:
        asked = min(samples - count, _BLOCK_SAMPLES)
        block = file.read(asked, dtype="float32", always_2d=True)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later
            mono[count : count + len(block)] = block.mean(axis=1, dtype=np.float32)
        count += len(block)
        if len(block) < asked:  # what lies behind a lost page would close the gap
            break
    return mono[:count]


def _start(begin: int, file: Any, stream: MpegStream | OggStream | None) -> int:
    """Return where to begin to decode so that the sample `begin` comes out as from the start."""
    rate_hz = int(file.samplerate)
    is_low = isinstance(stream, MpegStream) and rate_hz in _LOW_RATES_HZ
    if is_low and begin < _FROM_START_SECONDS * rate_hz:
        return 0
    if isinstance(stream, OggStream) and file.subtype == "VORBIS":
        # Inside the last page, which may hold more than is to be heard, libsndfile miscounts.
        begin = min(begin, int(file.frames) - stream.last_page_units)
    return max(0, begin - round(_LEAD_SECONDS.get(file.format, 0.0) * rate_hz))


def _decode_from_start(
    audio: Audio, frames: bytes, stream: MpegStream, max_seconds: float | None
) -> tuple[NDArray[np.float32], int]:
    """As `_decode`, an mp3 whose length is known from its frames alone.

    libsndfile guesses it from the first one's bit rate, and reads no further than that. From a
    pipe, where it does not know what is to come, it reads all.
    """
    import soundfile

    length = _Length(stream.samples, stream.rate_hz)
    begin, end = _span(audio, length, max_seconds)
    with _piped(frames) as pipe, soundfile.SoundFile(pipe, closefd=False) as file:
        channels = file.read(end, dtype="float32", always_2d=True)[begin:]
    _check_count(audio, stream, end - begin, len(channels))
    return channels, length.rate_hz


def _decode_movie(
    audio: Audio, file: Path | bytes, max_seconds: float | None
) -> tuple[NDArray[np.float32], int]:
    name = str(file_of(audio))
    most = None if isinstance(audio, AudioPart) else max_seconds
    if most is not None and (told := told_seconds(file, name)) is not None:
        refuse_too_long(str(audio), told, most)
    mono, rate_hz = decoded_movie(file, name, most)
    begin, end = _span(audio, _Length(len(mono), rate_hz), max_seconds)
    return mono[begin:end, None], rate_hz


@contextmanager
def _piped(content: bytes) -> Iterator[int]:
    """Yield the end of a pipe that `content` comes out of."""
    out, into = os.pipe()

    def feed() -> None:
        with suppress(BrokenPipeError), os.fdopen(into, "wb") as file:
            file.write(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield out
    finally:
        os.close(out)  # which ends the feeder where not all was read
        feeder.join()


def _span(audio: Audio, length: _Length, max_seconds: float | None) -> tuple[int, int]:
    begin, end = length.span_of(audio)
    if max_seconds is not None:
        refuse_too_long(str(audio), (end - begin) / length.rate_hz, max_seconds)
    return begin, end


def _check_count(
    audio: Audio, stream: MpegStream | OggStream | None, announced: int, present: int
) -> None:
    unsure = 0
    if isinstance(stream, MpegStream):
        unsure = _UNSURE_FRAMES * stream.samples_per_frame
    if present < announced - unsure:
        raise AudioError(
            f"{audio}: truncated or damaged: {announced} samples announced, {present} are there; "
            "copy the file again"
        )


def refuse_too_long(name: str, seconds: float, max_seconds: float) -> None:
    """Raise AudioError, naming the clip, where it is longer than `max_seconds`."""
    if seconds > max_seconds:
        raise AudioError(
            f"{name}: {seconds:.0f} s of audio, at most {max_seconds:.0f} s are taken; "
            "cut the clip at pauses"
        )


def audio_files_in(folder: Path) -> list[Path]:
    """Return every audio file below `folder`, in the order of their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )
