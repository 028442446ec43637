"""The steps by their first names, as the README has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import speechquant as sq
from speechquant.core.bundles import Bundle

RATE_HZ = 16_000


@pytest.fixture
def data(tmp_path: Path, noise: NDArray[np.float32]) -> Path:
    soundfile.write(tmp_path / "talk.wav", noise[: RATE_HZ // 2], RATE_HZ)
    row = {"audio_filepath": "talk.wav", "text": "one two"}
    (tmp_path / "dev.jsonl").write_text(json.dumps(row))
    return tmp_path / "dev.jsonl"


def test_from_a_bundle_to_an_engine(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    loaded = sq.load(tiny_bundle.folder)
    assert isinstance(loaded, Bundle)
    request = sq.CalibrationRequest(loaded, sq.DataSet(data), method=sq.MethodOptions("max"))
    assert sq.calibrate(request, tmp_path / "work").table.method == "max"
    made = sq.quantize(request, sq.QuantizeOptions(tmp_path / "w8a8"))
    assert made.bundle.spec.precision == "w8a8"
    sq.build(made.bundle.folder, tmp_path / "engine", sq.BuildOptions("onnxruntime"))
    (heard,) = sq.transcribe(tmp_path / "engine", [data.with_name("talk.wav")])
    assert sq.transcribe(tmp_path / "w8a8", [data.with_name("talk.wav")]) == [heard]
