from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.core.audio import AudioPart
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError
from speechquant.core.files import sha256_of
from speechquant.core.manifests import LabelledClip, clip_key

RATE_HZ = 16_000
SECONDS = 2.0


def write(folder: Path, *rows: object) -> Path:
    """Write a manifest beside two seconds of noise."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, int(SECONDS * RATE_HZ))
    soundfile.write(folder / "a.flac", wave, RATE_HZ)
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


@pytest.mark.parametrize("key", ["duration", "offset"])
@pytest.mark.parametrize(
    "value", ["2", True, [1], {}, "NaN", float("nan"), float("inf"), -float("inf"), -0.5, 10**400]
)
def test_seconds_must_be_seconds(tmp_path: Path, key: str, value: object) -> None:
    path = write(tmp_path, {"audio_filepath": "a.flac", "text": "yes", key: value})
    with pytest.raises(ManifestError, match=rf"manifest\.jsonl:1: '{key}' is .*; give seconds or"):
        read_data_set(path)


def test_a_duration_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio_filepath": "a.flac", "text": "yes", "duration": 0})
    with pytest.raises(ManifestError, match="'duration' is 0"):
        read_data_set(path)


@pytest.mark.parametrize("line", ["[]", '"a.flac"', "3"])
def test_a_line_must_be_an_object(tmp_path: Path, line: str) -> None:
    path = write(tmp_path)
    path.write_text(line + "\n")
    with pytest.raises(ManifestError, match="not a JSON object"):
        read_data_set(path)


def clip_of(folder: Path, **seconds: object) -> LabelledClip:
    (clip,) = read_data_set(write(folder, {"audio_filepath": "a.flac", "text": "yes", **seconds}))
    return clip


@pytest.mark.parametrize(
    "seconds",
    [
        {},
        {"duration": None, "offset": None},
        {"offset": 0},
        {"offset": 0.0, "duration": 2},
        {"duration": 1.96},
        {"duration": 2.04},
        {"duration": 1.9001},
        {"duration": 2.0999, "offset": 0},
    ],
)
def test_seconds_of_a_whole_file(tmp_path: Path, seconds: dict[str, object]) -> None:
    clip = clip_of(tmp_path, **seconds)
    assert clip.audio == tmp_path / "a.flac"
    assert clip.seconds == seconds.get("duration")
    # The key that search logs of before have.
    known = hashlib.sha256((sha256_of(clip.path) + "yes").encode()).hexdigest()[:16]
    assert clip_key(clip) == known


@pytest.mark.parametrize(
    ("seconds", "begin", "length"),
    [
        ({"duration": 0.5}, 0.0, 0.5),
        ({"offset": 0, "duration": 1.89}, 0.0, 1.89),
        ({"offset": 0.5, "duration": 1}, 0.5, 1.0),
        ({"offset": 1, "duration": 0.999}, 1.0, 0.999),
        ({"offset": 0.001}, 0.001, None),
        ({"offset": 1.5, "duration": 0.5}, 1.5, None),
        ({"offset": 1.5, "duration": 0.59}, 1.5, None),
        ({"offset": 1.9999}, 1.9999, None),
    ],
)
def test_parts_of_a_file(
    tmp_path: Path, seconds: dict[str, object], begin: float, length: float | None
) -> None:
    assert clip_of(tmp_path, **seconds).audio == AudioPart(tmp_path / "a.flac", begin, length)


@pytest.mark.parametrize(
    ("seconds", "asked"),
    [
        ({"duration": 2.11}, "0 to 2.11"),
        ({"offset": 2}, "2 to 2"),
        ({"offset": 2.05, "duration": 0.01}, "2.05 to 2.06"),
        ({"offset": 1, "duration": 1.2}, "1 to 2.2"),
        ({"offset": 1e300, "duration": 1e300}, "1e+300 to 2e+300"),
    ],
)
def test_parts_beyond_the_end(tmp_path: Path, seconds: dict[str, object], asked: str) -> None:
    message = f"manifest.jsonl:1: asks for {asked} s of {tmp_path}/a.flac, which lasts 2 s"
    with pytest.raises(ManifestError, match=re.escape(message)):
        clip_of(tmp_path, **seconds)


def test_a_part_of_what_is_no_audio(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio_filepath": "b.wav", "text": "yes", "duration": 2})
    (tmp_path / "b.wav").write_text("this is no audio")
    with pytest.raises(
        ManifestError, match=r"manifest\.jsonl:1: .*b\.wav: cannot be read as audio"
    ):
        read_data_set(path)


def test_the_key_of_a_clip_is_that_of_its_part(tmp_path: Path) -> None:
    asked: list[dict[str, object]] = [
        {}, {"offset": 0.5}, {"offset": 0.25}, {"offset": 0.5, "duration": 1.0},
        {"offset": 0.5, "duration": 1.25}, {"duration": 1.0},
    ]  # fmt: skip
    keys = [clip_key(clip_of(tmp_path, **seconds)) for seconds in asked]
    assert len(set(keys)) == len(asked)
    assert keys == [clip_key(clip_of(tmp_path, **seconds)) for seconds in asked]


def test_the_key_of_a_clip_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    clip = clip_of(tmp_path)
    before = clip_key(clip)
    soundfile.write(clip.path, np.zeros(int(SECONDS * RATE_HZ)), RATE_HZ)
    assert clip_key(clip) != before


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
