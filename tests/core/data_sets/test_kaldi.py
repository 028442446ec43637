from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sets import SmallSet, assert_same, small_set, waves

from speechquant.core.audio import AudioPart
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def write(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_folder_has_the_clips_of_the_manifest(small: SmallSet, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "kaldi",
        wav_scp=[f"{path.stem}  {path}" for path in small.files],
        # In another order, which is not the data set's.
        text=[
            f"{path.stem} {text}"
            for path, text in reversed(list(zip(small.files, small.texts, strict=True)))
        ],
        utt2spk=[f"{path.stem} ann" for path in small.files],
    )
    assert_same(folder, small)
    assert {clip.speaker for clip in read_data_set(folder)} == {"ann"}


def test_segments(small: SmallSet, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "kaldi",
        wav_scp=["rec ../files/clip0.wav"],
        segments=["b rec 0.125 0.375", "a rec 0.25 -1", "c rec 0 0.5"],
        text=["a from", "b part", "c whole"],
    )
    clips = read_data_set(folder)
    file = folder / "../files/clip0.wav"
    assert [clip.text for clip in clips] == ["part", "from", "whole"]
    assert [clip.audio for clip in clips] == [
        AudioPart(file, 0.125, 0.25),
        AudioPart(file, 0.25),
        file,
    ]
    whole = waves(read_data_set(small.manifest))[0]
    for wave, expected in zip(waves(clips), (whole[2000:6000], whole[4000:], whole), strict=True):
        np.testing.assert_array_equal(wave, expected)


def test_files_may_be_named_from_where_the_command_runs(
    small: SmallSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "kaldi", wav_scp=["a files/clip0.wav"], text=["a yes"])
    monkeypatch.chdir(tmp_path)
    assert len(waves(read_data_set(folder))) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": ["a sox x.sph -t wav - |"]}, r"wav\.scp:1: a command, which is never run; write"),
        ({"wav_scp": ["a x.ark:123"]}, r"wav\.scp:1: no such audio file: .*x\.ark:123"),
        ({"wav_scp": ["a clip.wav", "", "a clip.wav"]}, r"wav\.scp:3: a a second time"),
        ({"text": ["a yes", "b no"]}, r"text:2: b is not in wav\.scp; add it or drop the line"),
        ({"text": []}, r"wav\.scp:1: no text; write it there"),
        ({"segments": ["b a 0 0.2"]}, r"text:1: a is not in segments"),
        ({"segments": ["a b 0 0.2"]}, r"segments:1: no recording b in wav\.scp"),
        ({"segments": ["a a 0"]}, r"segments:1: no segment: 'a 0'; write the recording"),
        ({"segments": ["a a 0.3 0.2"]}, r"segments:1: no segment: 'a 0\.3 0\.2'"),
        ({"segments": ["a a nan 1"]}, r"segments:1: no segment"),
        ({"segments": ["a a 0 x"]}, r"segments:1: no segment"),
        ({"segments": ["a a 0.1 0.9"]}, r"segments:1: asks for 0\.1 to 0\.9 s of .*lasts 0\.5 s"),
        ({"segments": ["a"]}, r"segments:1: no segment: ''"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(
    small: SmallSet, tmp_path: Path, files: dict[str, list[str]], message: str
) -> None:
    good = {"wav_scp": [f"a {small.files[0]}"], "text": ["a yes"]}
    folder = write(tmp_path / "kaldi", **{**good, **files})
    with pytest.raises(ManifestError, match=message):
        read_data_set(folder)


def test_a_command_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    folder = write(tmp_path / "kaldi", wav_scp=[f"a touch {made} |"], text=["a yes"])
    with pytest.raises(ManifestError, match="never run"):
        read_data_set(folder, require_text=False)
    assert not made.exists()
