from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from small_sets import SmallSet, assert_same, small_set

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError


@pytest.fixture
def small(tmp_path: Path) -> SmallSet:
    return small_set(tmp_path / "files")


def audio_folder(folder: Path, small: SmallSet) -> Path:
    (folder / "train").mkdir(parents=True)
    for path in small.files:
        shutil.copy(path, folder / "train")
    return folder


@pytest.mark.parametrize("text", ["text", "transcription"])
def test_metadata_as_csv(small: SmallSet, tmp_path: Path, text: str) -> None:
    folder = audio_folder(tmp_path / "set", small)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", text])
        table.writerows(
            zip([f"train/{path.name}" for path in small.files], small.texts, strict=True)
        )
    assert_same(folder, small)
    assert_same(folder / "metadata.csv", small)


def test_metadata_as_json_lines(small: SmallSet, tmp_path: Path) -> None:
    folder = audio_folder(tmp_path / "set", small)
    lines = [
        json.dumps({"file_name": f"train/{path.name}", "text": text, "speaker_id": 7})
        for path, text in zip(small.files, small.texts, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert_same(folder, small)
    assert_same(folder / "metadata.jsonl", small)
    assert {clip.speaker for clip in read_data_set(folder)} == {"7"}


def test_a_manifest_may_be_called_metadata(small: SmallSet) -> None:
    renamed = small.manifest.rename(small.folder / "metadata.jsonl")
    found = read_data_set(renamed)
    assert [clip.text for clip in found] == list(small.texts)


def test_audio_folder_without_columns(small: SmallSet, tmp_path: Path) -> None:
    folder = audio_folder(tmp_path / "set", small)
    metadata = folder / "metadata.csv"
    metadata.write_text("file,text\ntrain/clip0.wav,yes\n")
    with pytest.raises(
        ManifestError, match=r"metadata\.csv:2: no 'file_name'; its columns are file,"
    ):
        read_data_set(folder)
    metadata.write_text("file_name,words\ntrain/clip0.wav,yes\n")
    with pytest.raises(
        ManifestError, match=r"metadata\.csv:2: no text column; its columns are file_"
    ):
        read_data_set(folder)
    assert read_data_set(folder, require_text=False)[0].text is None
    metadata.write_text("file_name,text\ntrain/gone.wav,yes\n")
    with pytest.raises(ManifestError, match=r"metadata\.csv:2: no such audio file: .*gone\.wav"):
        read_data_set(folder)
    metadata.write_text('file_name,text\ntrain/clip0.wav,"yes\n' + "a" * 200_000)
    with pytest.raises(ManifestError, match=r"metadata\.csv:\d+: broken table \(field larger than"):
        read_data_set(folder)


def common_voice(folder: Path, small: SmallSet, *rows: str) -> Path:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for path in small.files:
        shutil.copy(path, folder / "clips")
    table = folder / "test.tsv"
    table.write_text(
        "\n".join(["client_id\tpath\tsentence\tup_votes", *rows, ""]), encoding="utf-8"
    )
    return table


def test_common_voice(small: SmallSet, tmp_path: Path) -> None:
    rows = [
        f"speaker{index % 2}\t{path.name}\t{text}\t2"
        for index, (path, text) in enumerate(zip(small.files, small.texts, strict=True))
    ]
    table = common_voice(tmp_path / "cv", small, *rows)
    assert_same(table, small)
    speakers = [clip.speaker for clip in read_data_set(table)]
    assert speakers == ["speaker0", "speaker1", "speaker0", "speaker1", "speaker0"]
    with pytest.raises(ManifestError, match=r"cv: a folder with the tables test\.tsv; name one"):
        read_data_set(tmp_path / "cv")


def test_broken_common_voice(small: SmallSet, tmp_path: Path) -> None:
    table = common_voice(tmp_path / "cv", small, "a\tgone.mp3\tyes\t0")
    with pytest.raises(ManifestError, match=r"test\.tsv:2: no such audio file: .*clips.gone\.mp3"):
        read_data_set(table)
    table = common_voice(tmp_path / "cv", small, "a")
    with pytest.raises(
        ManifestError, match=r"test\.tsv:2: no 'path'; its columns are client_id, pat"
    ):
        read_data_set(table)
    table.write_bytes(b"path\tsentence\nclip0.wav\t\xff\n")
    with pytest.raises(ManifestError, match=r"test\.tsv: not UTF-8 text; save it as UTF-8"):
        read_data_set(table)
    table.write_text("path\tsentence\n")
    with pytest.raises(ManifestError, match=r"test\.tsv: no clip in it"):
        read_data_set(table)
