"""The command on Windows, as far as tests/windows.py can make this system behave like it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle

RATE_HZ = 16_000
_TESTS = Path(__file__).parent
_PREAMBLE = f"""
import sys
sys.path.insert(0, {str(_TESTS)!r})
import windows
windows.become_windows(["subprocess", "typer.main"])
"""
_FORBIDDEN = re.compile(r'[<>:"\\|?*]|[. ]$')


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def on_windows(
    commands: Sequence[Sequence[object]],
    modules: Sequence[str] = (),
    cache: Path | None = None,
) -> list[Outcome]:
    asked = {"commands": [[*map(str, command)] for command in commands], "modules": modules}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", _TESTS / "windows.py", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SPEECHQUANT_CACHE": str(cache)} if cache else None,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*row) for row in json.loads(done.stdout)]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for index in range(2):
        wave = rng.uniform(-0.1, 0.1, RATE_HZ)
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ)
        rows.append({"audio_filepath": f"{index}.wav", "text": "a word", "duration": 1.0})
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def modules_without_torch() -> list[str]:
    """Return all modules but those that are made of torch: they are imported by what needs it.

    Nor the one that is made of uvicorn, which asks a real Windows for its console.
    """
    root = _TESTS.parent
    return [
        ".".join(("speechquant", *path.relative_to(root).with_suffix("").parts))
        .removesuffix(".__init__")
        .replace("speechquant.front", "speechquant")
        for folder in sorted(init.parent for init in root.glob("*/__init__.py"))
        for path in sorted(folder.rglob("*.py"))
        if not re.search(r"^(import|from) (torch|uvicorn)\b", path.read_text(), re.MULTILINE)
    ]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_module_is_imported_and_every_command_that_runs_a_bundle_starts(
    tiny_bundle: Bundle, clips: Path, tmp_path: Path
) -> None:
    modules = modules_without_torch()
    assert len(modules) > 150
    helped, listed, inspected, transcribed, evaluated, rendered = on_windows(
        [
            ["--help"],
            ["zoo", "list"],
            ["inspect", tiny_bundle.folder, "--json"],
            ["transcribe", tiny_bundle.folder, clips, "--json"],
            ["evaluate", tiny_bundle.folder, "--data", clips, "--json"],
            ["evaluate", tiny_bundle.folder, "--data", "zoo:dev"],
        ],
        modules,
        cache=tmp_path / "cache",
    )
    assert [helped.code, listed.code, inspected.code, transcribed.code, evaluated.code] == [0] * 5
    assert "transcribe" in helped.out
    assert "zoo:hubert" in listed.out
    assert json.loads(inspected.out)["layers"][-1] == "head"
    texts = [clip["text"] for clip in json.loads(transcribed.out)["clips"]]
    assert len(texts) == 2
    assert json.loads(evaluated.out)["wer"]["reference_length"] == 4
    assert rendered.code == 1
    (line,) = rendered.err.splitlines()
    assert line.startswith("error: the zoo's corpus is not rendered on Windows")
    assert files_in(tmp_path) == {"clips"}


def test_bundles_and_engines_are_made_and_replaced(
    tiny_bundle: Bundle, clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir")
    out, engine, table = tmp_path / "w8a8", tmp_path / "engine", tmp_path / "scales.json"
    data: list[object] = ["--data", clips, "--method", "max"]
    quantize: list[object] = ["quantize", tiny_bundle.folder, out, *data, "--max-wer-drop", "100"]
    killed, running = (tmp_path / f".w8a8.partial-{pid}" for pid in (4194303, os.getpid()))
    killed.mkdir()
    running.mkdir()
    made = on_windows(
        [
            ["calibrate", tiny_bundle.folder, *data, "--out", table],
            quantize,
            [*quantize, "--force"],
            ["build", out, engine, "--backend", "onnxruntime"],
            ["transcribe", engine, clips],
        ]
    )
    assert [(one.code, one.err[-200:]) for one in made if one.code] == []
    assert len(made[-1].out.splitlines()) == 2
    assert files_in(tmp_path) == {"clips", "w8a8", "engine", "scales.json", running.name}
    assert not [path for path in tmp_path.rglob("*") if _FORBIDDEN.search(path.name)]


@pytest.mark.slow
def test_a_checkpoint_is_exported(
    tiny_checkpoint: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    done = on_windows([["export", tiny_checkpoint, tmp_path / "bundle"]])[0]
    assert (done.code, done.err[-200:] if done.code else "") == (0, "")
    assert files_in(tmp_path / "bundle") == files_in(tiny_bundle.folder)


def test_a_transcript_in_a_file_is_in_utf8() -> None:
    script = """
from speechquant.pipeline import command, commands

commands.run_app = lambda _: print(chr(0x436)) or 0
command.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + script],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    assert done.stdout == b"\xd0\xb6\n"


def test_an_interrupt_that_python_swallows_comes_again() -> None:
    script = """
import signal, time
from speechquant.pipeline import command, commands

class Swallows:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def runs(_):
    Swallows()
    for _ in range(400):
        time.sleep(0.05)
    return 0

commands.run_app = runs
command.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + script], text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: interrupted; nothing half-written was left behind\n"


def test_what_is_open_is_not_moved(tmp_path: Path) -> None:
    """The tests above mean nothing where it is."""
    script = f"""
from pathlib import Path
folder = Path({str(tmp_path)!r}) / "folder"
folder.mkdir()
with (folder / "file").open("w", encoding="utf-8"):
    for refused in (lambda: folder.rename(folder.with_name("other")), (folder / "file").unlink):
        try:
            refused()
        except PermissionError:
            print("refused")
folder.rename(folder.with_name("other"))
"""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + script], text=True, capture_output=True, check=True
    )
    assert done.stdout.split() == ["refused"] * 2
    assert files_in(tmp_path) == {"other"}
