from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechquant.core.errors import ManifestError
from speechquant.core.manifests import LabelledClip, read_data_set


def write(folder: Path, *rows: object) -> Path:
    (folder / "a.flac").touch()
    path = folder / "manifest.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_manifest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"audio_filepath": "a.flac", "text": "yes", "duration": 2, "speaker": "ann"},
        {"audio_filepath": str(tmp_path / "a.flac"), "text": ""},
    )
    expected = [
        LabelledClip(tmp_path / "a.flac", "yes", 2.0, "ann"),
        LabelledClip(tmp_path / "a.flac", "", None, None),
    ]
    assert read_data_set(path) == expected
    assert read_data_set(tmp_path) == expected


def test_blank_lines_keep_the_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio_filepath": "a.flac", "text": "yes"})
    path.write_text(f"\n{path.read_text()}\n{{}}\n")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:4: no string under the key"):
        read_data_set(path)


def test_text_is_needed_only_where_asked(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio_filepath": "a.flac"})
    assert read_data_set(path, require_text=False)[0].text is None
    with pytest.raises(ManifestError, match="'text'"):
        read_data_set(path)


@pytest.mark.parametrize("duration", ["2", True, [1]])
def test_duration_must_be_seconds(tmp_path: Path, duration: object) -> None:
    path = write(tmp_path, {"audio_filepath": "a.flac", "text": "yes", "duration": duration})
    with pytest.raises(ManifestError, match="duration"):
        read_data_set(path)


@pytest.mark.parametrize("line", ["[]", '"a.flac"', "3"])
def test_a_line_must_be_an_object(tmp_path: Path, line: str) -> None:
    path = write(tmp_path)
    path.write_text(line + "\n")
    with pytest.raises(ManifestError, match="not a JSON object"):
        read_data_set(path)


def test_segments_of_a_longer_file_are_refused(tmp_path: Path) -> None:
    row = {"audio_filepath": "a.flac", "text": "yes", "duration": 1.0}
    assert len(read_data_set(write(tmp_path, {**row, "offset": 0.0}))) == 1
    with pytest.raises(ManifestError, match=r"'offset' is 2\.5"):
        read_data_set(write(tmp_path, {**row, "offset": 2.5}))


def test_line_separators_inside_a_text_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path)
    line = '{"audio_filepath": "a.flac", "text": "one\u2028two"}'
    path.write_text(f"\ufeff{line}\n", encoding="utf-8")
    assert read_data_set(path)[0].text == "one\u2028two"


def test_text_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="'text'"):
        read_data_set(write(tmp_path, {"audio_filepath": "a.flac", "text": 3}), require_text=False)


def test_librispeech_layout(tmp_path: Path) -> None:
    chapter = tmp_path / "train" / "84" / "121550"
    chapter.mkdir(parents=True)
    for number in ("0000", "0001"):
        (chapter / f"84-121550-{number}.ogg").touch()
    transcript = chapter / "84-121550.trans.txt"
    transcript.write_text("84-121550-0000 BUT WITH FULL\n\n84-121550-0001 THE LIKE\n")
    assert read_data_set(tmp_path) == [
        LabelledClip(chapter / "84-121550-0000.ogg", "BUT WITH FULL", None, "84"),
        LabelledClip(chapter / "84-121550-0001.ogg", "THE LIKE", None, "84"),
    ]
    transcript.write_text("84-121550-0002 GONE\n")
    with pytest.raises(ManifestError, match=r"trans\.txt:1: no audio file 84-121550-0002"):
        read_data_set(tmp_path)


def test_binary_file_as_manifest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_data_set(path)
