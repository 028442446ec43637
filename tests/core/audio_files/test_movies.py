from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from speechquant.core.audio import AudioPart, audio_files_in, audio_seconds, read_audio
from speechquant.core.audio_files.members import FileSlice
from speechquant.core.errors import AudioError, MissingPackageError

av = pytest.importorskip("av")
KINDS = [("a.m4a", "aac", 16_000), ("a.mp4", "aac", 44_100), ("a.webm", "libopus", 48_000)]
RATE_HZ, SECONDS, TONE_HZ = 16_000, 3, 440


def movie(path: Path, codec: str, rate: int) -> Path:
    """Two channels, the tone in one of them."""
    time = np.arange(SECONDS * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * time)
    channels = np.stack([tone, np.zeros_like(tone)]).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout="stereo")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec", "rate"), KINDS)
def test_the_sound_is_read(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = movie(tmp_path / name, codec, rate)
    wave = read_audio(path, RATE_HZ)
    assert len(wave) / RATE_HZ == pytest.approx(SECONDS, abs=0.1)  # encoders add a frame or two
    assert audio_seconds(path) == pytest.approx(SECONDS, abs=0.1)
    middle = wave[RATE_HZ // 2 : 5 * RATE_HZ // 2].astype(np.float64)
    assert np.abs(np.fft.rfft(middle)).argmax() / 2 == TONE_HZ
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.25 / np.sqrt(2), rel=0.03)
    assert len(read_audio(AudioPart(path, 1.0, 0.5), RATE_HZ)) == RATE_HZ // 2
    assert audio_files_in(tmp_path) == [path]
    inside = FileSlice(path, name, 0, path.stat().st_size)
    np.testing.assert_array_equal(read_audio(inside, RATE_HZ), wave)
    np.testing.assert_array_equal(read_audio(path.read_bytes(), RATE_HZ), wave)
    assert audio_seconds(inside) == audio_seconds(path)


@pytest.mark.parametrize(("name", "codec", "rate"), KINDS)
def test_what_is_cut_short_or_too_long_is_refused(
    tmp_path: Path, name: str, codec: str, rate: int
) -> None:
    path = movie(tmp_path / name, codec, rate)
    with pytest.raises(AudioError, match="3 s of audio, at most 2 s"):
        read_audio(path, RATE_HZ, 2.0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"truncated|cannot be read as audio"):
        read_audio(path, RATE_HZ)


def test_without_its_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = movie(tmp_path / "a.m4a", "aac", RATE_HZ)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"a\.m4a: .*speechquant\[movies\]"):
        read_audio(path, RATE_HZ)
