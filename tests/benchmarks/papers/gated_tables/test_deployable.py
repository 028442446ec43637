"""Bundles in turns, told by what each hears and by the seconds that it says it took."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.benchmarks.papers.gated_tables import deployable
from speechquant.benchmarks.papers.real_whisper.candidates import Ours
from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip

RATE_HZ = 16_000


class FakeTurns:
    """Says "red dog" in half a second, a bundle called slow in a whole one."""

    asked: ClassVar[list[str]] = []

    def __init__(self, candidate: Ours) -> None:
        self._name = candidate.folder.name

    def __enter__(self) -> FakeTurns:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, waves: Sequence[Waveform]) -> tuple[list[str], float]:
        self.asked.append(self._name)
        return ["Red dog"], 1.0 if self._name == "slow" else 0.5


@pytest.fixture(autouse=True)
def fake_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTurns, "asked", [])
    monkeypatch.setattr(deployable, "Turns", FakeTurns)


def saved(folder: Path, noise: NDArray[np.float32]) -> list[LabelledClip]:
    folder.mkdir()
    texts = ("red dog", "red cat")
    for index in range(len(texts)):
        soundfile.write(folder / f"{index}.wav", noise[: RATE_HZ * (1 + index)], RATE_HZ)
    return [LabelledClip(folder / f"{index}.wav", text) for index, text in enumerate(texts)]


def test_all_hear_a_clip_before_the_next(
    whisper_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    clips = saved(tmp_path / "data", noise)
    bundles = {name: replace(whisper_bundle, folder=tmp_path / name) for name in ("fast", "slow")}
    found = deployable.in_turns(bundles, clips, 1)
    assert FakeTurns.asked == ["fast", "slow"] * (1 + len(clips))
    for name, seconds in (("fast", 0.5), ("slow", 1.0)):
        assert found[name].words.difference == pytest.approx(1 / 4)
        # 3 s of audio; the warm-up is not counted.
        assert found[name].real_time_factor == pytest.approx(2 * seconds / 3)


def test_the_command(
    whisper_bundle: Bundle,
    tmp_path: Path,
    noise: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(tmp_path / "data", noise)
    lines = [f'{{"audio_filepath": "{i}.wav", "text": "red dog"}}' for i in range(2)]
    (tmp_path / "data" / "manifest.jsonl").write_text("\n".join(lines))
    arguments = [str(whisper_bundle.folder), "--test", f"said={tmp_path}/data/manifest.jsonl"]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["deployable", *arguments])
    deployable.main()
    assert "| 0.00 (0.00 to 0.00) | 0.3333 |" in capsys.readouterr().out
    assert (tmp_path / "out" / deployable.PICTURE).stat().st_size > 1000
    twice = [arguments[0], *arguments]
    monkeypatch.setattr(sys, "argv", ["deployable", *twice])
    with pytest.raises(SystemExit, match="two folders of one name"):
        deployable.main()
    monkeypatch.setattr(sys, "argv", ["deployable", str(tmp_path), *arguments[1:]])
    with pytest.raises(SystemExit, match=r"^error: .*json"):
        deployable.main()
