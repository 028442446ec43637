from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Running, wav

from speechquant.core.bundles import Bundle
from speechquant.engines import open_recognizer
from speechquant.pipeline.command import run

pytest.importorskip("fastapi")


def test_the_command_serves_until_it_is_told_to_end(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "speechquant.pipeline.command", "serve", tiny_bundle.folder]
    command += ["--port", "0", "--json", "--token", tmp_path / "token", "--provider", "cpu"]
    command += ["--workers", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said = process.stderr.readline()
        lines = []
        while lines[-1:] not in (["}\n"], [""]):
            lines.append(process.stdout.readline())
        facts = json.loads("".join(lines))
        assert said == f"serving bundle (cpu) at {facts['url']}\n"
        token = {"authorization": "Bearer secret"}
        server = Running(facts["url"], process)
        status, heard = server.post({"model": "bundle"}, wav(1.0), headers=token)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert status == 200
    with open_recognizer(tiny_bundle) as recognizer:
        path = tmp_path / "a.wav"
        path.write_bytes(wav(1.0))
        assert heard["text"] == recognizer.transcribe([recognizer.read(path)])[0]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(["serve", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_served_is_one_line(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle.folder
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be listened on" in refusal(capsys, bundle, "--port", port)
    assert "nowhere" in refusal(capsys, tmp_path / "nowhere", "--port", 0)
    assert "there is a model 'bundle' already" in refusal(capsys, bundle, bundle, "--port", 0)
    (tmp_path / "token").write_text("\n")
    assert "no token" in refusal(capsys, bundle, "--token", tmp_path / "token")
    assert "cannot be read" in refusal(capsys, bundle, "--token", tmp_path / "none")
    assert "above 0" in refusal(capsys, bundle, "--max-seconds", "-1")


def test_without_its_packages_they_are_named(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "serve needs fastapi: pip install 'speechquant[serve]'" in refusal(
        capsys, tiny_bundle.folder
    )
