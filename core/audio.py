"""Audio files as mono float32 waveforms at the rate a model wants."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import AudioError

Waveform = NDArray[np.float32]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".opus"})
# Formats whose header does not tell the exact length.
_ESTIMATED_LENGTH = frozenset({"MP3", "OGG"})
# What programs write that stream a wav to a pipe: 0xFFFFFFFF, or the largest even sizes of 31 bits.
_WAV_SIZE_UNKNOWN = 0x7FFF0000


def _wav_data_bytes(file: BinaryIO) -> tuple[int, int] | None:
    """Return the data bytes that a RIFF header announces and those there; None for no header."""
    header = file.read(12)
    if len(header) < 12 or header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return None
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            start = file.tell()
            return size, file.seek(0, 2) - start
        file.seek(size + size % 2, 1)
    return None


def _refuse_truncated_wav(path: Path) -> None:
    # libsndfile shortens a cut-off wav without a word, so a half-copied clip would pass for whole.
    with path.open("rb") as file:
        sizes = _wav_data_bytes(file)
    if sizes is None:
        return
    announced, present = sizes
    if announced < _WAV_SIZE_UNKNOWN and present < announced:
        raise AudioError(
            f"{path}: truncated: its header announces {announced} bytes of samples, "
            f"{present} are there; copy the file again"
        )


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


def read_audio(path: Path, sample_rate_hz: int, max_seconds: float | None = None) -> Waveform:
    """Return the file at `path`, its channels averaged, at `sample_rate_hz`.

    Raises AudioError where the file is missing, no audio, truncated, empty, not finite, or longer
    than `max_seconds`.
    """
    import soundfile

    try:
        if not path.is_file():
            raise AudioError(f"{path}: no such audio file; check the path")
        _refuse_truncated_wav(path)
        with soundfile.SoundFile(os.fsencode(path)) as file:
            if max_seconds is not None:
                refuse_too_long(str(path), file.frames / file.samplerate, max_seconds)
            announced, rate = file.frames, file.samplerate
            is_estimate = file.format in _ESTIMATED_LENGTH
            channels = file.read(dtype="float32", always_2d=True)
    # soundfile answers a suffix it takes for headerless samples with a TypeError.
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(
            f"{path}: cannot be read as audio ({_one_line(error)}); "
            "wav, flac, ogg and mp3 files are read"
        ) from error
    if len(channels) < announced and not is_estimate:
        raise AudioError(
            f"{path}: truncated: {announced} samples announced, {len(channels)} are there; "
            "copy the file again"
        )
    for channel in channels.T:
        check_samples(channel, str(path))
    return resample(channels.mean(axis=1, dtype=np.float32), rate, sample_rate_hz)


def audio_seconds(path: Path) -> float:
    """Return how long a file is by its header; raises AudioError."""
    import soundfile

    try:
        return float(soundfile.info(os.fsencode(path)).duration)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(
            f"{path}: cannot be read as audio ({_one_line(error)}); "
            "wav, flac, ogg and mp3 files are read"
        ) from error


def refuse_too_long(name: str, seconds: float, max_seconds: float) -> None:
    """Raise AudioError, naming the clip, where it is longer than `max_seconds`."""
    if seconds > max_seconds:
        raise AudioError(
            f"{name}: {seconds:.0f} s of audio, at most {max_seconds:.0f} s go through the model "
            "at once; cut the clip at pauses"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def audio_files_in(folder: Path) -> list[Path]:
    """Return every audio file below `folder`, in the order of their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )
