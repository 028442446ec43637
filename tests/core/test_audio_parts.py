from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.core.audio import AudioPart, audio_seconds, read_audio
from speechquant.core.audio_files.containers import check_whole
from speechquant.core.audio_files.mpeg import MpegStream
from speechquant.core.errors import AudioError

SECONDS = 6.0
# As libsndfile writes them; a variable bit rate makes frames so small that they lean on many others.
FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "vbr.mp3": {"bitrate_mode": "VARIABLE", "compression_level": 0.95},
}
PARTS = [(0.0, 0.5), (0.0, 6.0), (0.3, 0.2), (2.0, 3.5), (3.999, 1.001), (5.9, 0.1)]


def voice(rate_hz: int) -> NDArray[np.float64]:
    times = np.arange(int(SECONDS * rate_hz)) / rate_hz
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(times))
    return 0.3 * np.sin(400 * times**1.5) * np.sin(3 * times) ** 2 + noise * (np.sin(times) > 0)


def slice_of(
    wave: NDArray[np.float32], rate_hz: int, begin: float, seconds: float | None
) -> object:
    first = round(begin * rate_hz)
    return wave[first:] if seconds is None else wave[first : first + round(seconds * rate_hz)]


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
@pytest.mark.parametrize("name", FORMATS)
def test_a_part_is_that_of_the_whole(tmp_path: Path, name: str, rate_hz: int) -> None:
    path = tmp_path / f"a.{name}"
    soundfile.write(path, voice(rate_hz), rate_hz, **FORMATS[name])
    whole, _ = soundfile.read(path, dtype="float32")
    assert len(whole) == SECONDS * rate_hz
    for begin, seconds in [*PARTS, (3.25, None)]:
        part = AudioPart(path, begin, seconds)
        expected = slice_of(whole, rate_hz, begin, seconds)
        np.testing.assert_allclose(read_audio(part, rate_hz), expected, rtol=0, atol=1e-6)
        assert audio_seconds(part) == pytest.approx(SECONDS - begin if seconds is None else seconds)


def test_a_part_of_an_mp3_that_does_not_tell_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, voice(16_000), 16_000, bitrate_mode="VARIABLE")
    stream = check_whole(path)
    assert isinstance(stream, MpegStream)
    path.write_bytes(path.read_bytes()[stream.audio_at :])
    whole = read_audio(path, 16_000)
    for begin, seconds in PARTS:
        expected = slice_of(whole, 16_000, begin, seconds)
        read = read_audio(AudioPart(path, begin, seconds), 16_000)
        np.testing.assert_allclose(read, expected, rtol=0, atol=1e-6)


def test_parts_that_touch_lose_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, voice(16_000), 16_000)
    borders = [0.0, 1.3, 2.1, 4.7, 6.0]
    read = [
        read_audio(AudioPart(path, begin, round(end - begin, 3)), 16_000)
        for begin, end in itertools.pairwise(borders)
    ]
    np.testing.assert_array_equal(np.concatenate(read), read_audio(path, 16_000))


def test_what_lies_before_a_part_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def counted(file: soundfile.SoundFile, frames: int, **options: object) -> object:
        asked.append(frames)
        return read(file, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    rate_hz = 48_000
    for name, options in FORMATS.items():
        path = tmp_path / f"a.{name}"
        soundfile.write(path, voice(rate_hz), rate_hz, **options)
        read_audio(AudioPart(path, 4.0, 0.5), rate_hz)
        # What a format needs to get going apart: 1 s.
        assert asked.pop() == (0.5 if name in ("wav", "flac") else 1.5) * rate_hz


def test_the_decoder_does_not_complain_of_parts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for rate_hz in (16_000, 44_100):
        path = tmp_path / "a.mp3"
        soundfile.write(path, voice(rate_hz), rate_hz, **FORMATS["vbr.mp3"])
        for begin in np.arange(0, 5.5, 0.2):
            read_audio(AudioPart(path, float(begin), 0.5), rate_hz)
    assert capfd.readouterr().err == ""


def test_a_limit_is_one_of_the_part(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, voice(16_000), 16_000)
    assert len(read_audio(AudioPart(path, 3.0, 1.5), 16_000, max_seconds=2.0)) == 24_000
    with pytest.raises(AudioError, match=r"a\.wav from 3 s on: 3 s of audio, at most 2 s"):
        read_audio(AudioPart(path, 3.0), 16_000, max_seconds=2.0)


@pytest.mark.parametrize(
    ("begin", "seconds", "name"),
    [
        (5.5, 1.0, "from 5.5 s for 1 s"),
        (13.0, None, "from 13 s on"),
        (-1.0, 1.0, "from -1 s for 1 s"),
        (1.0, -0.5, "from 1 s for -0.5 s"),
    ],
)
def test_a_part_that_is_not_there(
    tmp_path: Path, begin: float, seconds: float | None, name: str
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, voice(16_000), 16_000)
    with pytest.raises(
        AudioError, match=rf"a\.wav {name}: not inside the file, which lasts 6\.000"
    ):
        read_audio(AudioPart(path, begin, seconds), 16_000)


def test_a_part_is_named_where_it_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(32_000, np.nan), 16_000, "FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav from 0\.5 s for 1 s: sample 0 is nan"):
        read_audio(AudioPart(path, 0.5, 1.0), 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_seconds_that_are_not_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(AudioError, match="no part of a file"):
        AudioPart(tmp_path / "a.wav", value)
    with pytest.raises(AudioError, match="no part of a file"):
        AudioPart(tmp_path / "a.wav", 0.0, value)
