"""A few clips and their manifest, which data sets of other kinds are compared with."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speechquant.core.audio import Waveform, read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip, clip_key

RATE_HZ = 16_000
TEXTS = ("one two", "three", "four five six", "seven", "quote \" and ' and ü")


@dataclass(frozen=True)
class SmallSet:
    """Clips as files beside each other, with a manifest."""

    folder: Path
    files: tuple[Path, ...]
    texts: tuple[str, ...]

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.jsonl"


def small_set(
    folder: Path, suffixes: Sequence[str] = (".wav", ".flac", ".ogg", ".mp3")
) -> SmallSet:
    """Write a clip for each of TEXTS, of the suffixes in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(0), []
    for index in range(len(TEXTS)):
        path = folder / f"clip{index}{suffixes[index % len(suffixes)]}"
        wave = rng.uniform(-0.5, 0.5, RATE_HZ // 2 + 100 * index)
        soundfile.write(path, wave, RATE_HZ)
        files.append(path)
    lines = [
        json.dumps({"audio_filepath": path.name, "text": text})
        for path, text in zip(files, TEXTS, strict=True)
    ]
    made = SmallSet(folder, tuple(files), TEXTS)
    made.manifest.write_text("\n".join(lines))
    return made


def waves(clips: Sequence[LabelledClip]) -> list[Waveform]:
    return [read_audio(clip.audio, RATE_HZ) for clip in clips]


def assert_same(source: Path | str, small: SmallSet, indices: Sequence[int] | None = None) -> None:
    """Assert that a source has the clips of a small set: texts, samples, keys and order."""
    expected = read_data_set(small.manifest)
    if indices is not None:
        expected = [expected[index] for index in indices]
    found = read_data_set(source)
    assert [clip.text for clip in found] == [clip.text for clip in expected]
    for one, other in zip(waves(found), waves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [clip_key(clip) for clip in found] == [clip_key(clip) for clip in expected]
    assert [clip.stem for clip in found] == [clip.stem for clip in expected]


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
