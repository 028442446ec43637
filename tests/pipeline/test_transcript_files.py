from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle
from speechquant.pipeline.command import run

RATE_HZ = 16_000


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A folder with two clips, one of them in a folder below."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "talk"
    (folder / "day").mkdir(parents=True)
    for name, seconds in (("one.wav", 1), ("day/two.flac", 2)):
        soundfile.write(folder / name, rng.uniform(-0.1, 0.1, seconds * RATE_HZ), RATE_HZ)
    return folder


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def transcribe(*arguments: object) -> int:
    return run(["transcribe", *map(str, arguments)])


def test_every_format_of_every_file(tiny_bundle: Bundle, talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = [tiny_bundle.folder, talk, "--format", "txt,json,srt,vtt,tsv", "--output-dir", out]
    assert transcribe(*asked) == 0
    suffixes = ["json", "srt", "tsv", "txt", "vtt"]
    assert outputs(out) == [
        f"{name}.{suffix}" for name in ("day/two", "one") for suffix in suffixes
    ]
    document = json.loads((out / "day" / "two.json").read_text())
    assert document["format"] == "speechquant.transcript/1"
    assert document["seconds"] == 2.0
    assert " ".join(word["text"] for word in document["words"]) == document["text"]
    assert "00:00:" in (out / "one.srt").read_text()
    assert (out / "one.vtt").read_text().startswith("WEBVTT\n")


def test_nothing_is_replaced_without_force(
    tiny_bundle: Bundle, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.txt").write_text("mine")
    asked = [tiny_bundle.folder, talk, "--output-dir", tmp_path / "out"]
    assert transcribe(*asked) == 1
    assert "one.txt: already there" in capsys.readouterr().err
    assert outputs(tmp_path / "out") == ["one.txt"]
    assert transcribe(*asked, "--force") == 0
    assert (tmp_path / "out" / "one.txt").read_text() != "mine"


def test_one_bad_file_costs_the_exit_code_alone(
    tiny_bundle: Bundle, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (talk / "bad.wav").write_text("no audio")
    (tmp_path / "empty").mkdir()
    asked = [tiny_bundle.folder, talk, tmp_path / "empty", "--output-dir", tmp_path / "out"]
    assert transcribe(*asked) == 1
    assert outputs(tmp_path / "out") == ["day/two.txt", "one.txt"]
    assert "2 of 4 files could not be transcribed" in capsys.readouterr().err


def test_files_of_one_name_keep_their_suffixes(
    tiny_bundle: Bundle, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wave, rate = soundfile.read(talk / "one.wav")
    soundfile.write(talk / "one.flac", wave, rate)
    asked = [tiny_bundle.folder, talk / "one.wav", talk / "one.flac", "--output-dir"]
    assert transcribe(*asked, tmp_path / "out") == 0
    assert outputs(tmp_path / "out") == ["one.flac.txt", "one.wav.txt"]
    assert transcribe(*asked, tmp_path / "twice", talk / "one.wav") == 1
    assert "2 files would be written as one.wav" in capsys.readouterr().err


def test_one_file_is_printed(
    tiny_bundle: Bundle, talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(tiny_bundle.folder, talk / "one.wav", "--format", "vtt") == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:00.")
    for asked, expected in (
        ([talk, "--format", "vtt"], "2 files; only one of one format can be printed"),
        ([talk / "one.wav", "--format", "vtt,srt"], "only one of one format"),
        ([talk / "one.wav", "--format", "doc"], "doc: no such format; choose of txt, json, srt"),
        ([talk / "one.wav", "--format", "srt", "--json"], "add --output-dir"),
    ):
        assert transcribe(tiny_bundle.folder, *asked) == 1
        assert expected in capsys.readouterr().err


def test_standard_input(
    tiny_bundle: Bundle,
    talk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert transcribe(tiny_bundle.folder, talk / "one.wav") == 0
    text = capsys.readouterr().out.split("\t")[1]
    content = (talk / "one.wav").read_bytes()

    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    given(content)
    assert transcribe(tiny_bundle.folder, "-", "--output-dir", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"-\t{text}"
    assert outputs(tmp_path / "out") == ["stdin.txt"]
    given(content[: len(content) // 2])
    assert transcribe(tiny_bundle.folder, "-") == 1
    assert capsys.readouterr().err.startswith("error: -: truncated")


def test_whisper_is_asked_for_times_where_a_format_has_them(
    whisper_bundle: Bundle, talk: Path, tmp_path: Path
) -> None:
    asked = [whisper_bundle.folder, talk / "one.wav", "--provider", "cpu", "--temperatures", "0"]
    asked += ["--language", "English", "--output-dir"]
    assert transcribe(*asked, tmp_path / "timed", "--format", "json") == 0
    document = json.loads((tmp_path / "timed" / "one.json").read_text())
    assert document["language"] == "en"
    (first, *_) = document["segments"]
    assert set(first) == {"text", "start", "end", "decoding"}
    decoding = first["decoding"]
    assert decoding["temperature"] == 0.0 and decoding["chunk_start"] == 0.0
    assert decoding["log_probability"] < 0 < decoding["compression"]
    assert decoding["tokens"]
