from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.core.audio import audio_seconds, read_audio
from speechquant.core.audio_files.containers import check_whole
from speechquant.core.audio_files.mpeg import MpegStream
from speechquant.core.errors import AudioError

RATE_HZ = 16_000
SECONDS = 3.3
SUBTYPES = {"ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III", "flac": "PCM_16"}
DECODER_DELAY_SAMPLES = 576 + 529  # LAME's, and that of every decoder


def speech(seconds: float = SECONDS) -> NDArray[np.float64]:
    """Noise that grows and fades, so that a variable bit rate does vary."""
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return 0.1 * np.random.default_rng(0).standard_normal(len(times)) * np.sin(2 * times) ** 4


def written(path: Path, wave: NDArray[np.float64] | None = None, **options: object) -> Path:
    suffix = path.suffix[1:]
    form = "OGG" if suffix == "opus" else suffix.upper()
    wave = speech() if wave is None else wave
    soundfile.write(path, wave, RATE_HZ, SUBTYPES[suffix], format=form, **options)
    return path


def without_first_frame(path: Path) -> Path:
    """Take away an mp3's first frame, which says how many there are."""
    stream = check_whole(path)
    assert isinstance(stream, MpegStream)
    path.write_bytes(path.read_bytes()[stream.audio_at :])
    return path


@pytest.mark.parametrize("suffix", SUBTYPES)
def test_every_cut_is_found(tmp_path: Path, suffix: str) -> None:
    whole = written(tmp_path / f"a.{suffix}").read_bytes()
    path, rng = tmp_path / f"cut.{suffix}", random.Random(0)
    for length in [len(whole) - 1, *(rng.randrange(1, len(whole)) for _ in range(30))]:
        path.write_bytes(whole[:length])
        with pytest.raises(AudioError, match=r"cut\.\w+: (truncated|cannot be read as audio)"):
            read_audio(path, RATE_HZ)


@pytest.mark.parametrize("bit_rate_mode", ["CONSTANT", "VARIABLE"])
def test_a_cut_is_found_in_an_mp3_that_does_not_tell_its_length(
    tmp_path: Path, bit_rate_mode: str
) -> None:
    path = without_first_frame(written(tmp_path / "a.mp3", bitrate_mode=bit_rate_mode))
    whole = path.read_bytes()
    assert len(read_audio(path, RATE_HZ)) >= SECONDS * RATE_HZ
    path.write_bytes(whole[:-50])
    with pytest.raises(AudioError, match=r"a\.mp3: truncated: it ends inside a frame"):
        read_audio(path, RATE_HZ)


@pytest.mark.parametrize("bit_rate_mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("compression", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("seconds", [0.05, 2.0])
def test_a_whole_mp3_is_read_whole(
    tmp_path: Path, bit_rate_mode: str, compression: float, seconds: float
) -> None:
    wave, options = (
        speech(seconds),
        {"bitrate_mode": bit_rate_mode, "compression_level": compression},
    )
    path = written(tmp_path / "a.mp3", wave, **options)
    for tag in (b"", b"TAG" + b"x" * 125):
        path.write_bytes(path.read_bytes() + tag)
        # Frames too small for a header of LAME's do not tell what the encoder added.
        added = len(read_audio(path, RATE_HZ)) - len(wave)
        assert added == 0 or (compression == 0.95 and 0 < added < 4 * 576)


def test_an_mp3_of_varying_bit_rate_is_read_to_its_end(tmp_path: Path) -> None:
    """libsndfile takes it for less than half as long, and would read no more of it."""
    wave = np.concatenate([speech(0.6)[::-1], np.zeros(20 * RATE_HZ), speech(10.0)])
    path = written(tmp_path / "a.mp3", wave, bitrate_mode="VARIABLE")
    expected = read_audio(path, RATE_HZ)
    without_first_frame(path)
    assert soundfile.info(path).frames < len(wave) / 2
    read = read_audio(path, RATE_HZ)
    assert len(wave) + DECODER_DELAY_SAMPLES <= len(read) < len(wave) + 4 * 576
    behind = read[DECODER_DELAY_SAMPLES:][: len(wave)]
    np.testing.assert_allclose(behind[5000:], expected[5000:], atol=1e-6)
    assert audio_seconds(path) == len(read) / RATE_HZ


def test_two_mp3s_in_one_file_are_both_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp3")
    path.write_bytes(2 * path.read_bytes())
    assert audio_seconds(path) > 2 * SECONDS
    assert len(read_audio(path, RATE_HZ)) > 2 * SECONDS * RATE_HZ


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_recording_that_was_stopped_is_read_with_a_warning(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    read_audio(path, RATE_HZ)
    assert caplog.messages == []
    path.write_bytes(content[: content.rindex(b"OggS")])
    with caplog.at_level(logging.WARNING):
        assert 0.8 * SECONDS * RATE_HZ < len(read_audio(path, RATE_HZ)) < SECONDS * RATE_HZ
    assert "its last page does not end the stream" in caplog.text


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_second_stream_behind_the_first_is_refused(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}")
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(AudioError, match="another stream begins at byte"):
        read_audio(path, RATE_HZ)


def test_pages_that_are_lost_on_the_way_are_missed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ogg")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(AudioError, match="truncated or damaged: 52800 samples announced"):
        read_audio(path, RATE_HZ)


def test_frames_that_the_decoder_does_not_take_are_missed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp3")
    stream = check_whole(path)
    assert isinstance(stream, MpegStream)
    content = path.read_bytes()
    middle = stream.audio_at + 20 * 288
    assert content[middle : middle + 2] == b"\xff\xf3"
    path.write_bytes(content[:middle] + bytes(3000) + content[middle + 2880 :])
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        read_audio(path, RATE_HZ)


@pytest.mark.parametrize("name", ["notes.mp3", "notes.MP3", "notes.wav", "notes.dat"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_the_decoder_says_nothing_of_a_text(
    tmp_path: Path, name: str, encoding: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text("this is no audio\n" * 200, encoding=encoding)
    with pytest.raises(AudioError, match=rf"{name}: cannot be read as audio \(.*\); wav, flac"):
        read_audio(path, RATE_HZ)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("named", [".mp3", ".wav", ".dat"])
def test_what_a_file_is_called_does_not_count(tmp_path: Path, suffix: str, named: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, speech(), RATE_HZ)
    path.rename(path.with_suffix(named))
    assert len(read_audio(path.with_suffix(named), RATE_HZ)) == SECONDS * RATE_HZ


def test_a_tag_before_a_flac_is_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac")
    path.write_bytes(b"ID3\x04\0\0\0\0\x20\0" + bytes(4096) + path.read_bytes())
    assert len(read_audio(path, RATE_HZ)) == SECONDS * RATE_HZ


def test_a_flac_that_does_not_tell_its_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the samples are the last 36 bits before the check sum
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="its header does not tell its length"):
        read_audio(path, RATE_HZ, max_seconds=100.0)


def test_a_file_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp3")
    whole = path.read_bytes()
    read_audio(path, RATE_HZ)
    path.write_bytes(whole[:9000])
    with pytest.raises(AudioError, match="truncated"):
        read_audio(path, RATE_HZ)
    path.write_bytes(whole)
    os.utime(path, ns=(0, 0))
    read_audio(path, RATE_HZ)
