"""What the frames of an mp3 say of its length, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

# How far the decoder (libmpg123) looks for the first frame, and for the next one behind junk.
_JUNK_BEFORE_BYTES, _JUNK_BETWEEN_BYTES = 1 << 16, 1 << 10
_HEADER_BYTES = 4
_SYNC = 0x7FF
_MPEG_1, _MPEG_2, _MPEG_2_5, _RESERVED = 3, 2, 0, 1  # the values of the header's version field
_LAYER_1, _LAYER_2, _LAYER_3 = 3, 2, 1
_RATES_HZ = {
    _MPEG_1: (44_100, 48_000, 32_000),
    _MPEG_2: (22_050, 24_000, 16_000),
    _MPEG_2_5: (11_025, 12_000, 8_000),
}
# Kilobits a second by the header's bit rate field, from 1 on; 0 is free format.
_KILOBITS = {
    (True, _LAYER_1): tuple(range(32, 449, 32)),
    (True, _LAYER_2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, _LAYER_3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, _LAYER_1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, _LAYER_2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, _LAYER_3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MONO = 3
# Where the first frame says how many there are: behind its side information, or at byte 36.
_VBRI, _VBRI_PLACE, _VBRI_FRAMES = b"VBRI", 36, 14
_XING, _XING_FLAGS, _XING_FRAMES = (b"Xing", b"Info"), 4, 8


@dataclass(frozen=True)
class _Frame:
    """What a frame's header says; `kind` is what all frames of a stream share."""

    kind: tuple[int, int, int]
    rate_hz: int
    samples: int
    bytes: int
    side_bytes: int


@dataclass(frozen=True)
class MpegStream:
    """The frames of an mp3, the one apart that only says how many there are.

    `announced_frames` is what that one says, None where there is none, and `has_xing` whether it
    says so in the way that the decoder reads; `audio_at` is the byte of the first of the others.
    `is_cut` where the file ends inside its last frame, `gap_at` the byte behind which the decoder
    finds no more frames though there are some.
    """

    rate_hz: int
    samples_per_frame: int
    frames: int
    audio_at: int
    announced_frames: int | None = None
    has_xing: bool = False
    is_cut: bool = False
    gap_at: int | None = None

    @property
    def samples(self) -> int:
        """The samples of all frames, what an encoder added at both ends among them."""
        return self.frames * self.samples_per_frame

    @property
    def is_truncated(self) -> bool:
        """Whether frames are missing at its end; encoders count them with and without the first."""
        if self.announced_frames is None:
            return self.is_cut
        missing = self.announced_frames - self.frames
        return missing > 1 or (missing == 1 and self.is_cut)

    @property
    def tells_length(self) -> bool:
        """Whether the decoder reads how long it is, and reads it right: it stops there."""
        announced = self.announced_frames
        return self.has_xing and announced is not None and abs(announced - self.frames) <= 1


def after_id3(data: bytes) -> int:
    """Return the byte behind the ID3v2 tags that a file begins with."""
    place = 0
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        place += _id3_bytes(data, place)
    return place


def _id3_bytes(data: bytes, place: int) -> int:
    size = 0
    for byte in data[place + 6 : place + 10]:
        size = size << 7 | byte & 0x7F
    has_footer = data[place + 5] & 0x10
    return size + (20 if has_footer else 10)


def mpeg_stream(data: bytes) -> MpegStream | None:
    """Return the stream of frames in a file's bytes, None where there is none to decode."""
    begin = after_id3(data)
    place = _next_place(data, begin, None, begin + _JUNK_BEFORE_BYTES)
    first = None if place is None else _frame(data, place)
    if place is None or first is None:
        return None
    announced, has_xing = _announced(data, place, first)
    audio_at = place if announced is None else place + first.bytes
    frames, is_cut, gap_at = _count(data, audio_at, first.kind)
    return MpegStream(
        first.rate_hz, first.samples, frames, audio_at, announced, has_xing, is_cut, gap_at
    )


def _count(data: bytes, place: int, kind: tuple[int, int, int]) -> tuple[int, bool, int | None]:
    """Return how many whole frames there are, whether one is cut, and where there is a gap."""
    frames = 0
    while place < len(data):
        frame = _frame(data, place)
        if frame is not None and frame.kind == kind:
            if place + frame.bytes > len(data):
                return frames, True, None
            frames += 1
            place += frame.bytes
        elif len(data) - place < _HEADER_BYTES:
            return frames, data[place] == 0xFF, None  # a header that is cut itself
        elif data.startswith(b"ID3", place) and place + 10 <= len(data):
            place += _id3_bytes(data, place)
        else:
            found = _next_place(data, place, kind, len(data))
            if found is None:
                return frames, False, None  # tags and the like
            if found - place > _JUNK_BETWEEN_BYTES:
                return frames, False, place
            place = found
    return frames, False, None


def _next_place(data: bytes, place: int, kind: tuple[int, int, int] | None, end: int) -> int | None:
    """Return where two frames of a kind follow each other, as chance hardly has it."""
    while (place := data.find(b"\xff", place, end)) >= 0:
        first = _frame(data, place)
        if first is not None and kind in (None, first.kind):
            second = _frame(data, place + first.bytes)
            if second is not None and second.kind == first.kind:
                return place
        place += 1
    return None


def _frame(data: bytes, place: int) -> _Frame | None:
    return _described(int.from_bytes(data[place : place + _HEADER_BYTES], "big"))


@lru_cache(maxsize=4096)
def _described(header: int) -> _Frame | None:
    """Return what the four bytes of a header say, None where they are none."""
    version, layer = header >> 19 & 3, header >> 17 & 3
    bit_rate, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != _SYNC or version == _RESERVED or not layer or rate == 3:
        return None
    if bit_rate in (0, 15):
        return None
    rate_hz = _RATES_HZ[version][rate]
    bits = 1000 * _KILOBITS[version == _MPEG_1, layer][bit_rate - 1]
    padding = header >> 9 & 1
    if layer == _LAYER_1:
        samples, length = 384, 4 * (12 * bits // rate_hz + padding)
    else:
        samples = 576 if layer == _LAYER_3 and version != _MPEG_1 else 1152
        length = samples // 8 * bits // rate_hz + padding
    is_mono = header >> 6 & 3 == _MONO
    side = (17 if is_mono else 32) if version == _MPEG_1 else (9 if is_mono else 17)
    return _Frame((version, layer, rate), rate_hz, samples, length, side)


def _announced(data: bytes, place: int, first: _Frame) -> tuple[int | None, bool]:
    """Return how many frames the first one announces, None where it is sound; whether as Xing."""
    if data.startswith(_VBRI, place + _VBRI_PLACE):
        return _number(data, place + _VBRI_PLACE + _VBRI_FRAMES), False
    tag = place + _HEADER_BYTES + first.side_bytes
    # Some encoders put it behind the header's check sum, where there is one.
    for where in (tag, tag + 2):
        if data.startswith(_XING, where) and _number(data, where + _XING_FLAGS) & 1:
            return _number(data, where + _XING_FRAMES), True
    return None, False


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "big")
