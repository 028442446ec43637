"""What the README and the quickstart tell people to type is what works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.pipeline.command import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RATE_HZ = 16_000
# These pages are links and tables alone, or have their own tests.
MOST_WORDS = 700


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_whisper: Path) -> Path:
    """A folder with what the README takes for granted; its checkpoint is a tiny one."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)
    soundfile.write(tmp_path / "talk.flac", noise, RATE_HZ)
    row = json.dumps({"audio_filepath": "talk.flac", "text": "what is said"})
    for name in ("dev.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f"{row}\n" * 2)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "whisper-base").symlink_to(tiny_whisper)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(text: str) -> list[str]:
    """The lines that are indented to be typed."""
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_the_readme_starts_in_a_minute() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_every_command_of_the_readme_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], traced_before: None
) -> None:
    commands = [line for line in typed(README) if line.startswith("speechquant ")]
    assert len(commands) >= 6
    for command in commands:
        # The bench of a model takes minutes; tests/benchmarks runs it.
        if not command.startswith("speechquant bench"):
            assert run(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    assert (folder / "whisper-engine" / "engine.json").is_file()


def test_the_python_of_the_readme_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], traced_before: None
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.startswith("[")


def test_every_make_target_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "docs/results/README.md"]
    named = {
        target
        for page in pages
        for target in re.findall(r"`make ([a-z][\w-]*)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
