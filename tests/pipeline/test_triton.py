from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechquant.core.bundles import Bundle
from speechquant.pipeline.command import run


def test_the_command_writes_a_repository_and_says_what_its_python_needs(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["triton", str(tiny_bundle.folder), str(out)]
    assert run(arguments) == 0
    assert capsys.readouterr().out == (
        f"{out}: bundle for Triton\n"
        f"its Python needs numpy>=1.26,<2, onnxruntime>=1.20 ({out / 'requirements.txt'})\n"
    )
    assert run([*arguments, "--name", "asr", "--backend", "onnxruntime", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(out),
        "models": ["asr", "asr-graph"],
        "requirements": ["numpy>=1.26,<2"],
    }


def test_a_language_by_its_name(
    whisper_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["triton", str(whisper_bundle.folder), str(out), "--language", "English"]) == 0
    config = (out / "bundle" / "config.pbtxt").read_text()
    assert 'key: "language"\n  value {\n    string_value: "en"' in config


def test_bad_input_is_one_line(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = str(tiny_bundle.folder), tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for arguments, reason in (
        ([bundle, out], "already there; choose another name or add --force"),
        ([bundle, out, "--force"], "not made by this command"),
        ([bundle, tmp_path / "a", "--language", "en"], "not a Whisper model"),
        ([bundle, tmp_path / "a", "--name", "a/b"], "give --name with letters"),
        ([bundle, tmp_path / "a", "--backend", "tensorrt"], "speechquant build --backend tensorrt"),
        ([bundle, tmp_path / "a", "--max-wait-ms", "inf"], "--max-wait-ms is inf"),
        ([spoilt, tmp_path / "a"], "no bundle.json in it"),
    ):
        assert run(["triton", *map(str, arguments)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert not (tmp_path / "a").exists()
