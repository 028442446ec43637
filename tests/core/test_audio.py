from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.core.audio import Samples, audio_files_in, audio_seconds, check_samples, read_audio
from speechquant.core.errors import AudioError

RATE_HZ = 16_000


def sine(rate_hz: int, seconds: float = 1.0, frequency_hz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)]
)
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_formats_and_rates_give_the_same_sine(
    tmp_path: Path, suffix: str, tolerance: float, rate_hz: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sine(rate_hz), rate_hz)
    wave = read_audio(path, RATE_HZ)
    assert wave.dtype == np.float32
    assert abs(len(wave) - RATE_HZ) <= 0.08 * RATE_HZ  # mp3 pads to whole frames
    middle = wave[4_000:12_000]
    # The phase may shift in a lossy codec; the amplitude and the frequency may not.
    assert np.abs(middle).max() == pytest.approx(0.5, abs=max(tolerance, 0.01))
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) * RATE_HZ / len(middle) == pytest.approx(440, abs=2)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([np.full(100, 0.2), np.full(100, 0.6)], 1), RATE_HZ, "FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE_HZ), 0.4, rtol=1e-6)


def test_a_name_that_is_no_utf_8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"bad\xff.wav")
    soundfile.write(os.fsencode(path), np.full(1600, 0.25), RATE_HZ)
    assert len(read_audio(path, RATE_HZ)) == 1600
    assert audio_seconds(path) == 0.1


def test_samples_at_the_same_rate_are_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    expected = sine(RATE_HZ).astype(np.float32)
    soundfile.write(path, expected, RATE_HZ, "FLOAT")
    np.testing.assert_array_equal(read_audio(path, RATE_HZ), expected)


# What ffmpeg, sox and arecord write where they cannot go back to the header.
@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFF00])
def test_wav_streamed_to_a_pipe_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(RATE_HZ), RATE_HZ)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path, RATE_HZ)) == RATE_HZ


def test_length_limit_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(RATE_HZ, 2.0), RATE_HZ)
    assert len(read_audio(path, RATE_HZ, max_seconds=2.0)) == 2 * RATE_HZ
    with pytest.raises(AudioError, match="2 s of audio, at most 1 s"):
        read_audio(path, RATE_HZ, max_seconds=1.0)


def test_headerless_samples_are_no_audio(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(AudioError, match=r"a\.raw: cannot be read as audio"):
        read_audio(tmp_path / "a.raw", RATE_HZ)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(value: float) -> None:
    with pytest.raises(AudioError, match="clip 7: sample 2 is"):
        check_samples(np.array([0, 1, value, 0], np.float32), "clip 7")


def test_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ["b.wav", "a.FLAC", "sub/c.mp3", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert [path.name for path in audio_files_in(tmp_path)] == ["a.FLAC", "b.wav", "c.mp3"]


def test_bytes_and_samples_are_read_as_their_file_is(tmp_path: Path) -> None:
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2)).astype(np.float32)
    path = tmp_path / "stereo.flac"
    soundfile.write(path, stereo, 8_000, subtype="PCM_24")
    expected = read_audio(path, 16_000)
    np.testing.assert_array_equal(read_audio(path.read_bytes(), 16_000), expected)
    values, rate_hz = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(read_audio(Samples(values, rate_hz), 16_000), expected)
    mono = Samples(stereo[:, 0], 16_000)
    np.testing.assert_array_equal(read_audio(mono, 16_000), stereo[:, 0])


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (
            b"no audio",
            r"^the audio given as bytes: cannot be read as audio \(Format not recognised",
        ),
        (Samples(np.zeros(0), 16_000), "^the audio given as samples: no samples"),
        (Samples(np.array([0.0, np.nan]), 16_000), "^the audio given as samples: sample 1 is nan"),
        (Samples(np.zeros((1, 2, 3)), 16_000), r"shape \(1, 2, 3\) at 16000 Hz"),
        (Samples(np.zeros(9), 0), "at 0 Hz"),
        (Samples(np.zeros(32_000), 16_000), "2 s of audio, at most 1 s"),
    ],
)
def test_bytes_and_samples_that_are_no_audio_are_named(
    audio: bytes | Samples, message: str
) -> None:
    with pytest.raises(AudioError, match=message):
        read_audio(audio, 16_000, 1.0)
