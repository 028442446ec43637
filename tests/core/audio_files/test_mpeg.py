from __future__ import annotations

import pytest

from speechquant.core.audio_files.mpeg import MpegStream, mpeg_stream

# Two headers and the bytes of their frames, worked out by hand: 144 x 128,000 / 44,100 = 417.96 of
# MPEG 1, 72 x 8,000 / 16,000 = 36 of MPEG 2.
STEREO = (b"\xff\xfb\x90\x00", 417)
MONO = (b"\xff\xf3\x18\xc0", 36)


def frames(count: int, kind: tuple[bytes, int] = STEREO, first: bytes = b"") -> bytes:
    header, size = kind
    whole = [header.ljust(size, b"\0")] * count
    return b"".join([(header + first).ljust(size, b"\0"), *whole] if first else whole)


def info(announced: int, name: bytes = b"Info", side_bytes: int = 32) -> bytes:
    return bytes(side_bytes) + name + b"\0\0\0\1" + announced.to_bytes(4, "big")


def vbri(announced: int) -> bytes:
    return bytes(32) + b"VBRI" + bytes(10) + announced.to_bytes(4, "big")


def stream(data: bytes) -> MpegStream:
    found = mpeg_stream(data)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("header", "size", "samples", "rate_hz"),
    [
        (*STEREO, 1152, 44_100),
        (*MONO, 576, 16_000),
        (b"\xff\xfb\x92\x00", 418, 1152, 44_100),  # a byte of padding
        (b"\xff\xe3\x88\xc4", 576, 576, 8_000),  # MPEG 2.5: 72 x 64,000 / 8,000
        (b"\xff\xfd\xa4\x00", 576, 1152, 48_000),  # layer II: 144 x 192,000 / 48,000
        (b"\xff\xff\xc4\x00", 384, 384, 48_000),  # layer I: 4 x (12 x 384,000 / 48,000)
    ],
)
def test_frames_are_counted(header: bytes, size: int, samples: int, rate_hz: int) -> None:
    found = stream(frames(7, (header, size)))
    assert (found.frames, found.samples, found.rate_hz) == (7, 7 * samples, rate_hz)
    assert not found.is_truncated
    assert not found.tells_length
    for missing in (1, size // 2, size - 1):
        cut = stream(frames(7, (header, size))[:-missing])
        assert (cut.frames, cut.is_truncated) == (6, True)


@pytest.mark.parametrize("name", [b"Info", b"Xing"])
@pytest.mark.parametrize(("kind", "side_bytes"), [(STEREO, 32), (MONO, 9)])
def test_a_header_that_tells_how_many(
    name: bytes, kind: tuple[bytes, int], side_bytes: int
) -> None:
    whole = frames(7, kind, info(7, name, side_bytes))
    found = stream(whole)
    assert (found.frames, found.announced_frames, found.audio_at) == (7, 7, kind[1])
    assert found.tells_length
    assert not found.is_truncated
    # Some encoders count the first frame too: one that is missing is no sign, unless it is cut.
    assert not stream(whole[: -kind[1]]).is_truncated
    assert stream(whole[: -kind[1] + 5]).is_truncated
    assert stream(whole[: -2 * kind[1]]).is_truncated
    # Two files, one behind the other: the header is that of the first.
    assert not stream(whole + whole).tells_length
    assert not stream(whole + whole).is_truncated


def test_a_header_of_fraunhofers_encoder() -> None:
    assert not stream(frames(7, first=vbri(7))).is_truncated
    assert stream(frames(5, first=vbri(7))).is_truncated
    assert not stream(frames(7, first=vbri(7))).tells_length


ID3 = b"ID3\x04\0\0\0\0\x01\x02" + bytes(130)  # 7 bits of the size in each of its bytes
FOOTED = b"ID3\x04\0\x10\0\0\0\x05" + bytes(5) + b"3DI\x04\0\x10\0\0\0\x05"


@pytest.mark.parametrize("before", [b"", ID3, ID3 + FOOTED, bytes(3000), b"junk" * 100])
@pytest.mark.parametrize(
    "behind",
    [b"", b"TAG" + b"x" * 125, b"APETAGEX" + bytes(56), bytes(5000), ID3, b"x", b"LYRICSBEGIN"],
)
def test_tags_are_no_frames(before: bytes, behind: bytes) -> None:
    found = stream(before + frames(7) + behind)
    assert (found.frames, found.is_truncated, found.gap_at) == (7, False, None)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_header_that_is_cut(left: int) -> None:
    assert stream(frames(7) + STEREO[0][:left]).is_truncated


def test_junk_between_frames_and_a_gap_that_the_decoder_does_not_leap() -> None:
    assert stream(frames(3) + bytes(1000) + frames(4)).frames == 7
    assert stream(frames(3) + ID3 + frames(4)).frames == 7
    found = stream(frames(3) + bytes(2000) + frames(4))
    assert (found.frames, found.gap_at) == (3, 3 * 417)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is no audio\n" * 500,
        "this is no audio\n".encode("utf-16") * 500,
        b"\xff" * 5000,
        bytes(5000),
        ID3 + b"x" * 5000,
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + b"x" * 1000,
        b"ID3",
        frames(1),
        STEREO[0],
        bytes(70_000) + frames(7),  # further on than the decoder looks
        frames(7, (b"\xff\xfb\x00\x00", 417)),  # free format, which hardly anything writes
    ],
)
def test_what_has_no_frames(content: bytes) -> None:
    assert mpeg_stream(content) is None
