"""calibrate --tensorrt-cache: what it writes, and that the calibrator classes read it back."""

from __future__ import annotations

import json
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.calibrators import tensorrt as calibrators
from speechquant.calibrators.tensorrt import CalibrationBatches
from speechquant.core.bundles import Bundle
from speechquant.core.errors import ScaleError
from speechquant.core.scales import read_scales
from speechquant.pipeline.command import run

CLASSES = {"ema": "EmaMinMaxCalibrator", "max": "StableQuantCalibrator"}


@pytest.fixture
def trt8(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tensorrt")
    bases = ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
    vars(module).update(__version__="8.5.3.1", **{name: type(name, (), {}) for name in bases})
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.fixture
def asked(tiny_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]) -> list[str]:
    rows = []
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", noise[:8000] / (number + 1), 16_000)
        rows.append(json.dumps({"audio_filepath": f"{number}.wav"}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    out = ["--out", str(tmp_path / "scales.json"), "--tensorrt-cache", str(tmp_path / "cache")]
    return ["calibrate", str(tiny_bundle.folder), "--data", str(tmp_path / "data.jsonl"), *out]


@pytest.mark.parametrize(
    ("method", "header"),
    [("ema", "TRT-8503-MinMaxCalibration"), ("max", "TRT-8503-EntropyCalibration2")],
)
def test_the_calibrators_read_what_is_written(
    method: str,
    header: str,
    asked: list[str],
    trt8: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*asked, "--method", method, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensorrt_cache"] == str(tmp_path / "cache")
    table = read_scales(tmp_path / "scales.json")
    first, *lines = (tmp_path / "cache").read_text().splitlines()
    assert first == header
    pairs = [line.rsplit(": ", 1) for line in lines]
    written = {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, digits in pairs}
    assert written == {name: np.float32(row.scale) for name, row in table.tensors.items()}
    batches = CalibrationBatches((), 1, tmp_path / "cache")
    calibrator = getattr(calibrators, CLASSES[method])(table, batches)
    assert calibrator.read_calibration_cache() == (tmp_path / "cache").read_bytes()
    other = next(name for key, name in CLASSES.items() if key != method)
    with pytest.raises(ScaleError, match=f"made for {header}"):
        getattr(calibrators, other)(table, batches)
    (tmp_path / "scales.json").unlink()
    assert run([*asked, "--method", method]) == 1  # the cache is still there
    assert str(tmp_path / "cache") in capsys.readouterr().err


def test_the_version_can_be_named(asked: list[str], tmp_path: Path) -> None:
    assert run([*asked, "--method", "max", "--tensorrt-version", "10.9.0"]) == 0
    assert (tmp_path / "cache").read_text().startswith("TRT-100900-EntropyCalibration2\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ema", "--asymmetric"], "asymmetric, and TensorRT takes only zero point 0"),
        (["--method", "max", "--bits", "16"], "W16A16: TensorRT calibrates 8 bits"),
        (["--method", "max", "--weight-bits", "4"], "W4A8: TensorRT calibrates 8 bits"),
        (["--method", "max", "--tensorrt-version", "11.0.0"], "TensorRT 11.0.0 has no calibrators"),
        (["--out", "one", "--tensorrt-cache", "one"], "one: named for two outputs"),
    ],
)
def test_what_tensorrt_cannot_take_is_refused_before_any_work(
    options: list[str],
    message: str,
    asked: list[str],
    trt8: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tmp_path.iterdir())
    assert run([*asked, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before
