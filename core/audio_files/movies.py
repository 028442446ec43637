"""The sound of m4a, mp4 and webm files, which PyAV reads; it is an extra."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import AudioError, MissingPackageError, one_line

MOVIE_SUFFIXES = frozenset({".m4a", ".mp4", ".webm"})
_HEAD_BYTES = 12
_MP4_MARK, _WEBM_MARK = b"ftyp", b"\x1a\x45\xdf\xa3"
# The last packet of a recording that was stopped may be told as longer than it is.
_UNSURE_SECONDS = 0.5


def is_movie(file: Path | bytes) -> bool:
    """Return whether a file, or its bytes, begins as an mp4 or a webm does; raises OSError."""
    if isinstance(file, bytes):
        head = file[:_HEAD_BYTES]
    else:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    return head[4:8] == _MP4_MARK or head.startswith(_WEBM_MARK)


def told_seconds(file: Path | bytes, name: str) -> float | None:
    """Return how long the file says that its sound is; raises AudioError, MissingPackageError."""
    with _sound_of(file, name) as (container, stream):
        return _told_seconds(container, stream)


def movie_seconds(file: Path | bytes, name: str) -> float:
    """Return how long the sound is; raises AudioError and MissingPackageError."""
    told = told_seconds(file, name)
    if told is not None:
        return told
    samples, rate_hz = decoded_movie(file, name)
    return len(samples) / rate_hz


def decoded_movie(
    file: Path | bytes, name: str, most_seconds: float | None = None
) -> tuple[NDArray[np.float32], int]:
    """Return the samples of the first sound track, channels averaged, and their rate.

    `name` is what messages call the file. Stops soon after `most_seconds`. Raises AudioError and
    MissingPackageError.
    """
    pieces: list[NDArray[np.float32]] = []
    count = 0
    with _sound_of(file, name) as (container, stream):
        import av

        rate_hz = int(stream.rate)
        told = _told_seconds(container, stream)
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate_hz)
        for frame in container.decode(stream):
            for piece in resampler.resample(frame):
                pieces.append(piece.to_ndarray().mean(axis=0, dtype=np.float32))
                count += len(pieces[-1])
            if most_seconds is not None and count > most_seconds * rate_hz:
                break
        else:
            if told is not None and count < (told - _UNSURE_SECONDS) * rate_hz:
                raise AudioError(
                    f"{name}: truncated or damaged: {told:.2f} s announced, {count / rate_hz:.2f} "
                    "are there; copy the file again"
                )
    return np.concatenate([*pieces, np.zeros(0, np.float32)]), rate_hz


def _told_seconds(container: Any, stream: Any) -> float | None:
    import av

    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


@contextmanager
def _sound_of(file: Path | bytes, name: str) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(
            f"{name}: m4a, mp4 and webm files need PyAV: pip install 'speechquant[movies]'"
        ) from error
    opened = io.BytesIO(file) if isinstance(file, bytes) else str(file)
    try:
        with av.open(opened, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: no sound track in it; give a file with one")
            yield container, container.streams.audio[0]
    except av.FFmpegError as error:
        raise AudioError(f"{name}: cannot be read as audio ({one_line(error)})") from error
