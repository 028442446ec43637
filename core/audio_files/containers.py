"""What an audio file's own structure says of its length: files that were cut short are refused."""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from speechquant.core.audio_files.mpeg import MpegStream, after_id3, mpeg_stream
from speechquant.core.errors import AudioError

log = logging.getLogger(__name__)

READ_FORMATS = "wav, flac, ogg, mp3, m4a, mp4 and webm files are read"
_HEAD_BYTES = 12
# What programs write that stream a wav to a pipe: 0xFFFFFFFF, or the largest even sizes of 31 bits.
_WAV_SIZE_UNKNOWN = 0x7FFF0000
# Files of these formats are no mp3, whatever their names say.
_OTHER_FORMATS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"caff", b".snd")
_OGG = b"OggS"
_OGG_FLAGS, _OGG_GRANULE, _OGG_SEGMENTS, _OGG_HEADER_BYTES = 5, 6, 26, 27
_OGG_FIRST, _OGG_LAST = 2, 4


@dataclass(frozen=True)
class OggStream:
    """An ogg's pages; `last_page_units` is what the last one holds, in samples if it is Vorbis."""

    last_page_units: int


def check_whole(path: Path) -> MpegStream | OggStream | None:
    """Return what an mp3 or ogg is made of, None for any other file; raises AudioError, OSError.

    A file is refused whose structure says that some of it is missing. libsndfile reads what is left
    of such a wav, ogg or mp3 without a word, so a half-copied clip would pass for whole.
    """
    status = path.stat()
    return _checked_file(path, status.st_size, status.st_mtime_ns)


def check_content(content: bytes, name: str) -> MpegStream | OggStream | None:
    """As `check_whole`, for the bytes of a file that messages call `name`."""
    return _checked(io.BytesIO(content), name)


# A manifest may name a thousand parts of one file.
@lru_cache(maxsize=256)
def _checked_file(path: Path, size: int, modified_ns: int) -> MpegStream | OggStream | None:
    with path.open("rb") as file:
        return _checked(file, str(path))


def _checked(file: BinaryIO, name: str) -> MpegStream | OggStream | None:
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if head.startswith(b"RIFF"):
        _check_wav(name, file)
    elif head.startswith(_OGG):
        return _checked_ogg(name, file.read())
    elif _may_be_mpeg(name, head):
        return _checked_mpeg(name, file.read())
    return None


def _check_wav(name: str, file: BinaryIO) -> None:
    sizes = _wav_data_bytes(file)
    if sizes is None:
        return
    announced, present = sizes
    if announced < _WAV_SIZE_UNKNOWN and present < announced:
        raise AudioError(
            f"{name}: truncated: its header announces {announced} bytes of samples, "
            f"{present} are there; copy the file again"
        )


def _wav_data_bytes(file: BinaryIO) -> tuple[int, int] | None:
    """Return the data bytes that a RIFF header announces and those there; None for no header."""
    header = file.read(_HEAD_BYTES)
    if len(header) < _HEAD_BYTES or header[8:] != b"WAVE":
        return None
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            start = file.tell()
            return size, file.seek(0, 2) - start
        file.seek(size + size % 2, 1)
    return None


def _checked_ogg(name: str, data: bytes) -> OggStream:
    place, end, flags, is_begun = 0, 0, 0, False
    ends = [0, 0]  # where the last two pages end, in the stream's own units
    while (place := data.find(_OGG, end)) >= 0:
        end = _ogg_page_end(data, place)
        if end > len(data):
            break
        flags = data[place + _OGG_FLAGS]
        if is_begun and flags & _OGG_FIRST:
            raise AudioError(
                f"{name}: another stream begins at byte {place}, behind the first one, and would "
                "not be read; cut the file there, or write both as one stream"
            )
        is_begun = is_begun or not flags & _OGG_FIRST
        (units,) = struct.unpack_from("<q", data, place + _OGG_GRANULE)
        if units >= 0:  # less than that: nothing ends on the page
            ends = [ends[1], units]
    left = data[end:]
    if place >= 0 or (left and _OGG.startswith(left)):
        raise AudioError(
            f"{name}: truncated: it ends inside a page of its ogg stream; copy the file again"
        )
    if not flags & _OGG_LAST:
        # Programs that record a stream leave it so; a copy is hardly ever cut between two pages.
        log.warning("warning: %s: its last page does not end the stream; is the file whole?", name)
    return OggStream(ends[1] - ends[0])


def _ogg_page_end(data: bytes, place: int) -> int:
    """Return the byte behind a page, beyond the end of `data` where it is cut."""
    table = place + _OGG_HEADER_BYTES
    if table > len(data):
        return len(data) + 1
    segments = data[place + _OGG_SEGMENTS]
    if table + segments > len(data):
        return len(data) + 1
    return table + segments + sum(data[table : table + segments])


def _may_be_mpeg(name: str, head: bytes) -> bool:
    has_mark = head.startswith((b"ID3", b"\xff"))
    is_named = name.lower().endswith(".mp3")
    return (has_mark or is_named) and not head.startswith(_OTHER_FORMATS)


def _checked_mpeg(name: str, data: bytes) -> MpegStream | None:
    if data.startswith(_OTHER_FORMATS, after_id3(data)):
        return None
    stream = mpeg_stream(data)
    if stream is None:
        # Said here, as the decoder, asked for its opinion, prints several lines of its own.
        raise AudioError(f"{name}: cannot be read as audio (no mp3 frames in it); {READ_FORMATS}")
    if stream.is_truncated:
        announced = (
            "it ends inside a frame"
            if stream.announced_frames is None
            else f"its header announces {stream.announced_frames} frames, {stream.frames} are there"
        )
        raise AudioError(f"{name}: truncated: {announced}; copy the file again")
    if stream.gap_at is not None:
        raise AudioError(
            f"{name}: damaged: no mp3 frames behind byte {stream.gap_at}, where more should be; "
            "copy the file again"
        )
    return stream
