"""From an upload to samples: what it may be, how long, and that it is gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from speechquant.core.audio import Waveform, audio_seconds, read_audio
from speechquant.core.errors import AudioError
from speechquant.engines.recognizers import Recognizer
from speechquant.serve.errors import ApiError

# What soundfile and libsndfile's mp3 decoder read; everything else meets no decoder.
_MARKS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"ID3")
_MPEG_SYNC, _MPEG_SYNC_BITS = 0xFF, 0xE0  # eleven ones
_HEAD_BYTES = 12
# What a second may hold, of all channels: silence of many takes next to no bytes in a flac.
_MOST_VALUES_A_SECOND = 4 * 48_000
# A file of a few bytes would last hours at one sample a second.
_LEAST_RATE_HZ = 4_000
# How errors call what was sent, instead of the temporary file that it is in.
_NAME = "file"


def waveform_of(upload: BinaryIO, recognizer: Recognizer, most_seconds: float) -> Waveform:
    """Return an upload as the model takes it; raises ApiError. Blocks."""
    head = upload.read(_HEAD_BYTES)
    upload.seek(0)
    if not head:
        raise ApiError(400, "The audio file is empty.", field="file", code="invalid_value")
    if not _is_known(head):
        raise ApiError(
            415,
            "Unrecognized file format. Supported formats: wav, flac, ogg, mp3.",
            field="file",
            code="unsupported_format",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _NAME
        with path.open("wb") as file:
            shutil.copyfileobj(upload, file)
        try:
            return _read(path, recognizer, most_seconds)
        except AudioError as error:
            message = str(error).replace(str(path), _NAME)
            raise ApiError(400, message, field="file", code="invalid_audio") from error


def _is_known(head: bytes) -> bool:
    is_mpeg = (
        len(head) > 1 and head[0] == _MPEG_SYNC and head[1] & _MPEG_SYNC_BITS == _MPEG_SYNC_BITS
    )
    return is_mpeg or head.startswith(_MARKS)


def _read(path: Path, recognizer: Recognizer, most_seconds: float) -> Waveform:
    most = min(most_seconds, recognizer.max_clip_seconds)
    seconds = audio_seconds(path)
    if seconds > most:
        raise ApiError(
            413,
            f"The audio lasts {seconds:.0f} s; at most {most:.0f} s are taken.",
            field="file",
            code="audio_too_long",
        )
    _refuse_odd_rates(path)
    wave = read_audio(path, recognizer.spec.sample_rate_hz, most)
    recognizer.check(wave, _NAME)
    return wave


def _refuse_odd_rates(path: Path) -> None:
    import soundfile

    try:
        facts = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError):
        return  # read_audio says what is wrong
    if facts.samplerate < _LEAST_RATE_HZ:
        raise ApiError(
            400,
            f"The audio has {facts.samplerate} samples a second; speech needs {_LEAST_RATE_HZ}.",
            field="file",
            code="invalid_audio",
        )
    if facts.samplerate * facts.channels > _MOST_VALUES_A_SECOND:
        raise ApiError(
            413,
            f"The audio has {facts.channels} channels of {facts.samplerate} samples a second; "
            f"at most {_MOST_VALUES_A_SECOND} in all are taken.",
            field="file",
            code="audio_too_dense",
        )
