from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechquant as sq
from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, OptionError
from speechquant.engines import open_recognizer


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "one.flac", tmp_path / "two.wav"]
    for path, samples in zip(paths, (8_000, 12_000), strict=True):
        soundfile.write(path, 0.1 * rng.standard_normal(samples), 16_000)
    return paths


def test_paths_are_transcribed_as_their_samples_are(tiny_bundle: Bundle, clips: list[Path]) -> None:
    waves = [soundfile.read(path, dtype="float32")[0] for path in clips]
    with open_recognizer(tiny_bundle) as recognizer:
        expected = recognizer.transcribe(waves)
    assert sq.transcribe(str(tiny_bundle.folder), [str(clips[0]), clips[1]]) == expected
    assert sq.transcribe(sq.load(str(tiny_bundle.folder)), clips[1:]) == expected[1:]
    assert any(expected)


def test_what_is_no_list_of_audio_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give a list of paths"):
        sq.transcribe(tiny_bundle, "one.flac")
    with pytest.raises(AudioError, match="missing"):
        sq.transcribe(tiny_bundle, [tmp_path / "missing.flac"])
