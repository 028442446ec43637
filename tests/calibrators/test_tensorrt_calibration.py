from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.calibrators.tensorrt import scales_from_cache
from speechquant.core.bundles import Bundle
from speechquant.core.errors import MissingPackageError, OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.pipeline.tensorrt_calibration import (
    OwnCalibration,
    WaveformBatches,
    calibrator_for,
)

RATE = 16_000


@pytest.fixture
def trt8(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("tensorrt")
    bases = ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
    vars(module).update(__version__="8.5.3.1", **{name: type(name, (), {}) for name in bases})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def data(tmp_path: Path, noise: NDArray[np.float32]) -> tuple[Path, list[NDArray[np.float32]]]:
    """A manifest of three clips of 1, 0.5 and 0.75 seconds, and their samples as stored."""
    lengths = (RATE, RATE // 2, 3 * RATE // 4)
    waves = [np.round(noise[:length] * 32767).astype(np.int16) for length in lengths]
    rows = []
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{number}.wav", wave, RATE)
        rows.append(json.dumps({"audio_filepath": f"{number}.wav", "text": "a word"}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    return tmp_path / "data.jsonl", [wave.astype(np.float32) / 32768 for wave in waves]


@pytest.mark.parametrize(
    ("method", "base"), [("max", "IInt8EntropyCalibrator2"), ("ema", "IInt8MinMaxCalibrator")]
)
def test_from_bundle_and_data_to_table_and_calibrator(
    method: str,
    base: str,
    tiny_bundle: Bundle,
    data: tuple[Path, list[NDArray[np.float32]]],
    trt8: types.ModuleType,
    tmp_path: Path,
) -> None:
    manifest, waves = data
    table, calibrator = calibrator_for(tiny_bundle, str(manifest), method, work=tmp_path / "work")
    assert isinstance(calibrator, getattr(trt8, base))
    cache = calibrator.read_calibration_cache()
    assert cache is not None
    scales = scales_from_cache(cache)
    assert list(scales) == list(tiny_bundle.spec.layers) == list(table.tensors)
    with ProbeSession(tiny_bundle, threads=1) as probe:
        seen = [probe.run(feeds_of(tiny_bundle.spec, [wave])) for wave in waves]
    name = next(iter(scales))
    largest = [float(np.abs(values[name]).max()) for values in seen]
    low = [min(float(values[name].min()), 0.0) for values in seen]
    high = [max(float(values[name].max()), 0.0) for values in seen]

    def averaged(values: list[float]) -> float:
        return 0.9 * (0.9 * values[0] + 0.1 * values[1]) + 0.1 * values[2]

    # The EMA scheme averages the ends of 16 groups of clips, here one clip each.
    wanted = max(largest) if method == "max" else max(-averaged(low), averaged(high))
    assert scales[name] == pytest.approx(wanted / 127, rel=1e-4)


def test_batches_have_the_profiles_shape(
    tiny_bundle: Bundle, data: tuple[Path, list[NDArray[np.float32]]]
) -> None:
    manifest, waves = data
    clips = [LabelledClip(manifest.with_name(f"{number}.wav"), None) for number in range(3)]
    batches = WaveformBatches(tiny_bundle.spec, clips, samples=10_000, batch=2)
    (feeds,) = list(batches)
    assert feeds["input_lengths"].tolist() == [10_000, 8_000]
    assert feeds["input_values"].shape == (2, 10_000)
    cut = waves[0][:10_000].astype(np.float64)
    wanted = (cut - cut.mean()) / np.sqrt(cut.var() + 1e-7)
    np.testing.assert_allclose(feeds["input_values"][0], wanted, atol=1e-5)
    assert not feeds["input_values"][1, 8_000:].any()
    assert feeds["input_values"][1, 7_999] != 0
    assert len(list(batches)) == 1  # and again from the start
    longer = WaveformBatches(tiny_bundle.spec, clips, samples=20_000, batch=1)
    assert [feeds["input_values"].shape for feeds in longer] == [(1, 20_000)] * 3


def test_with_batches_tensorrt_calibrates_first(
    tiny_bundle: Bundle,
    data: tuple[Path, list[NDArray[np.float32]]],
    trt8: types.ModuleType,
    tmp_path: Path,
) -> None:
    own = OwnCalibration(samples=8_000, batch=3, cache_file=tmp_path / "cache")
    _, calibrator = calibrator_for(
        tiny_bundle, str(data[0]), "max", work=tmp_path / "work", batches=own
    )
    assert calibrator.get_batch_size() == 3
    assert calibrator.read_calibration_cache() is None


@pytest.mark.parametrize(
    ("samples", "batch", "message"),
    [
        (399, 1, "batches of 399 samples; the model needs at least 400"),
        (8_000, 4, "batches of 4 clips, and there are 3"),
        (8_000, 0, "batches of 0 clips"),
    ],
)
def test_batches_that_cannot_be_made(
    samples: int,
    batch: int,
    message: str,
    tiny_bundle: Bundle,
    data: tuple[Path, list[NDArray[np.float32]]],
    trt8: types.ModuleType,
    tmp_path: Path,
) -> None:
    own = OwnCalibration(samples, batch, tmp_path / "cache")
    with pytest.raises(OptionError, match=message):
        calibrator_for(tiny_bundle, str(data[0]), "max", work=tmp_path / "work", batches=own)
    assert not (tmp_path / "work").exists()


def test_a_missing_library_is_told_before_any_work(
    tiny_bundle: Bundle,
    data: tuple[Path, list[NDArray[np.float32]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        calibrator_for(tiny_bundle, str(data[0]), work=tmp_path / "work")
    assert not (tmp_path / "work").exists()
