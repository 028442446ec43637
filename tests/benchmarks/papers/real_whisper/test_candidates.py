from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechquant.benchmarks.papers.real_whisper import candidates
from speechquant.benchmarks.papers.real_whisper.candidates import Ours
from speechquant.core.errors import EngineError


def test_a_row_never_runs_on_another_provider_than_its_name_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = SimpleNamespace(provider="cpu", transcribe=lambda waves: ["heard"] * len(waves))
    monkeypatch.setattr(candidates, "open_recognizer", lambda *_, **__: opened)
    for provider in ("cpu", None):
        assert Ours(Path("bundle"), 1, None, provider).open()([]) == []
    with pytest.raises(EngineError, match="openvino cannot run it on this machine"):
        Ours(Path("bundle"), 1, None, "openvino").open()
