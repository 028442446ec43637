from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import soundfile
from small_sets import RATE_HZ, SmallSet, assert_same, small_set, waves

from speechquant.core.data_sets.read import FORMAT_NAMES, read_data_set
from speechquant.core.data_sets.source import expanded
from speechquant.core.errors import AudioError, ManifestError


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def test_audio_with_texts_beside(small: SmallSet, tmp_path: Path) -> None:
    small.manifest.rename(tmp_path / "other.jsonl")
    for path, text in zip(small.files, small.texts, strict=True):
        path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    clips = read_data_set(small.folder)
    assert [clip.text for clip in clips] == list(small.texts)
    assert [clip.path for clip in clips] == list(small.files)
    assert [clip.path for clip in read_data_set(f"{small.folder}/*.wav")] == [
        small.files[0], small.files[4]
    ]  # fmt: skip
    small.files[2].with_suffix(".txt").unlink()
    with pytest.raises(ManifestError, match=r"clip2\.ogg: no text in clip2\.txt beside it; write"):
        read_data_set(small.folder)
    assert read_data_set(small.folder, require_text=False)[2].text is None


def test_audio_alone_is_enough_where_no_text_is_asked_for(small: SmallSet) -> None:
    small.manifest.unlink()
    assert [clip.path for clip in read_data_set(small.folder, require_text=False)] == list(
        small.files
    )
    with pytest.raises(ManifestError, match=r"clip0\.wav: no text in clip0\.txt beside it"):
        read_data_set(small.folder)


def test_librispeech(small: SmallSet, tmp_path: Path) -> None:
    lines = [f"{path.stem} {text}" for path, text in zip(small.files, small.texts, strict=True)]
    folder = tmp_path / "set" / "84" / "1"
    folder.mkdir(parents=True)
    for path in small.files:
        shutil.copy(path, folder)
    (folder / "84-1.trans.txt").write_text("\n".join(lines), encoding="utf-8")
    assert_same(tmp_path / "set", small)


def test_a_folder_of_nothing_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ManifestError, match=r"no data set in it; give one of these .*: JSONL man"):
        read_data_set(tmp_path)
    assert len(FORMAT_NAMES) == len(set(FORMAT_NAMES)) == 10


def test_no_such_data(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none: no such data; give a manifest, a folder"):
        read_data_set(tmp_path / "none")


def test_braces() -> None:
    assert expanded("a") == ["a"]
    assert expanded("a-{008..011}.tar") == [
        f"a-{number}.tar" for number in ("008", "009", "010", "011")
    ]
    assert expanded("{b,a}{1..2}") == ["b1", "b2", "a1", "a2"]
    assert expanded("{3..1}") == ["3", "2", "1"]


def test_a_name_with_brackets_is_a_name(small: SmallSet, tmp_path: Path) -> None:
    assert_same(
        small.manifest.rename(small.folder / "a[1]{b}.jsonl"), _moved(small, "a[1]{b}.jsonl")
    )


def _moved(small: SmallSet, name: str) -> SmallSet:
    shutil.copy(small.folder / name, small.manifest)
    return small


def test_a_limit_reads_no_further(small: SmallSet) -> None:
    small.files[3].unlink()
    assert [clip.text for clip in read_data_set(small.manifest, limit=3)] == list(small.texts[:3])
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:4: no such audio file"):
        read_data_set(small.manifest, limit=4)


def test_clips_that_cannot_be_read_are_left_out_where_that_is_allowed(
    small: SmallSet, caplog: pytest.LogCaptureFixture
) -> None:
    small.files[0].write_bytes(b"this is no audio")
    small.files[1].unlink()
    with small.manifest.open("a") as file:
        beyond = {"audio_filepath": small.files[2].name, "text": "no", "offset": 7}
        file.write(f"\n{json.dumps(beyond)}")
    with caplog.at_level(logging.WARNING):
        clips = read_data_set(small.manifest, skip_unreadable=True)
    assert [clip.path for clip in clips] == list(small.files[2:])
    lines = caplog.text.splitlines()
    assert len(lines) == 4
    assert "left out: " in lines[0] and "clip0.wav: cannot be read as audio" in lines[0]
    assert "manifest.jsonl:2: no such audio file" in lines[1]
    assert "manifest.jsonl:6: asks for 7 to" in lines[2]
    assert "manifest.jsonl: 3 of 6 clips left out, as they cannot be read" in lines[3]
    assert len(read_data_set(small.manifest, skip_unreadable=True, limit=2)) == 2


def test_a_set_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", [0.0] * 100, RATE_HZ)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match="no clip in it"):
        read_data_set(tmp_path, require_text=False, skip_unreadable=True)


def test_other_errors_end_the_reading(small: SmallSet) -> None:
    with small.manifest.open("a") as file:
        file.write("\n{]")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:6: broken JSON"):
        read_data_set(small.manifest, skip_unreadable=True)


def test_an_unreadable_clip_is_an_error_when_it_is_read(small: SmallSet) -> None:
    small.files[0].write_bytes(b"this is no audio")
    with pytest.raises(AudioError, match=r"clip0\.wav: cannot be read as audio"):
        waves(read_data_set(small.manifest))
