from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from quantized import w8a8

from speechquant.core.bundles import Bundle
from speechquant.pipeline.command import run

RATE_HZ = 16_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(RATE_HZ), RATE_HZ)
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(json.dumps({"audio_filepath": f"{i}.wav"}) for i in range(2)))
    return manifest


@pytest.mark.parametrize("family", ["ctc", "whisper"])
def test_table_json_and_pictures(
    family: str,
    tiny_bundle: Bundle,
    whisper_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_bundle.folder if family == "ctc" else whisper_bundle.folder
    asked = ["outliers", str(folder), "--data", str(data), "--pictures", str(tmp_path / "pictures")]
    assert run(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "over 2 clips" in lines[-4] and lines[-3].startswith("largest infinity norm")
    for path in lines[-2:]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert run([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["clips"] == 2
    rows = {row["module"]: row for row in document["modules"]}
    attended = [row["kurtosis"] for name, row in rows.items() if name.endswith("out_proj")]
    assert document["average_attention_kurtosis"] == pytest.approx(np.mean(attended))
    assert document["largest_infinity_norm"] == max(row["infinity_norm"] for row in rows.values())
    floor_shows = any(row["kurtosis"] < 1.0 for row in rows.values())
    assert any(line.startswith("note: kurtosis below 1") for line in lines) == floor_shows


def test_what_cannot_be_measured(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = w8a8(tiny_bundle, tmp_path / "w8a8")
    for folder, options, message in (
        (quantized.folder, [], "already quantized"),
        (tiny_bundle.folder, ["--attention", "head"], "'head': no such attention; choose"),
        (tiny_bundle.folder, ["--head", "9"], "has no head 9; they are counted from 0"),
    ):
        assert run(["outliers", str(folder), "--data", str(data), *options]) == 1
        assert message in capsys.readouterr().err
