from __future__ import annotations

import struct
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechquant.calibrators import tensorrt as calibrators
from speechquant.calibrators.tensorrt import (
    ENTROPY,
    MIN_MAX,
    CalibrationBatches,
    cache_version,
    calibration_cache,
    read_cache,
    set_dynamic_range,
    version_number,
)
from speechquant.core.errors import EngineError, MissingPackageError, OptionError, ScaleError
from speechquant.core.scales import Bits, Scale, ScaleTable

TABLE = ScaleTable(
    "model",
    "stablequant",
    Bits(),
    {
        # Worked by hand: 0.5 = 1.0b * 2^-1, so sign 0, exponent 126, mantissa 0;
        # 0.15625 = 1.01b * 2^-3, so exponent 124, mantissa 0100...
        "conv.0.input": Scale("conv.0", 0.5, 63.5),
        "block.input": Scale("block.0", 0.15625, 19.84375),
    },
)
CACHE = b"TRT-8503-EntropyCalibration2\nconv.0.input: 3f000000\nblock.input: 3e200000\n"


def stand_in(monkeypatch: pytest.MonkeyPatch, version: str, *bases: str) -> types.ModuleType:
    """A module called tensorrt that has no more than a version and empty calibrator classes."""
    module = types.ModuleType("tensorrt")
    vars(module).update(__version__=version, **{name: type(name, (), {}) for name in bases})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def scales_from_cache(cache: bytes) -> dict[str, float]:
    return read_cache(cache, "the calibration cache")[1]


@pytest.fixture
def trt8(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return stand_in(monkeypatch, "8.5.3.1", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")


def test_a_cache_worked_by_hand() -> None:
    assert calibration_cache(TABLE, "8.5.3.1", ENTROPY) == CACHE
    assert calibration_cache(TABLE, "10.9.0.34", MIN_MAX).startswith(
        b"TRT-100900-MinMaxCalibration\nconv.0.input: 3f000000\n"
    )


@pytest.mark.parametrize(
    ("version", "number"), [("8.5.3.1", 8503), ("8.6.1.post1", 8601), ("10.16.1.11", 101601)]
)
def test_version_numbers(version: str, number: int) -> None:
    assert version_number(version) == number


def test_the_version_that_a_cache_is_for(
    trt8: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_version(None) == "8.5.3.1"
    assert cache_version("10.9.0") == "10.9.0"
    with pytest.raises(EngineError, match=r"TensorRT 11\.0\.1 has no calibrators"):
        cache_version("11.0.1")
    with pytest.raises(OptionError, match="give one such as"):
        cache_version("ten")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="--tensorrt-version"):
        cache_version(None)


def test_scales_come_back_as_float32() -> None:
    scales = np.exp(np.random.default_rng(1).uniform(-30, 30, 500))
    rows = {f"layer {n}: out": Scale("conv.0", float(s), 1.0) for n, s in enumerate(scales)}
    read = scales_from_cache(calibration_cache(replace(TABLE, tensors=rows), "8.5.3", ENTROPY))
    assert list(read) == list(rows)
    assert np.array_equal(np.array(list(read.values()), np.float32), scales.astype(np.float32))


def test_a_cache_that_tensorrt_wrote() -> None:
    # From NVIDIA's sample of such a file, and a small scale, which it writes without leading zeros.
    cache = (
        b"TRT-7000-EntropyCalibration2\ndata: 3c008912\n(Unnamed Layer* 3) [Shuffle]_output: 1\n"
    )
    read = scales_from_cache(cache)
    assert read["data"] == pytest.approx(1 / 127.465, rel=1e-4)
    assert read["(Unnamed Layer* 3) [Shuffle]_output"] == 2.0**-149


@pytest.mark.parametrize(
    "cache",
    [
        b"",
        b"conv: 3f000000\n",
        b"TRT-8503-EntropyCalibration2\nconv 3f000000\n",
        b"TRT-8503-EntropyCalibration2\nconv: 3f0000000\n",
        b"TRT-8503-EntropyCalibration2\nconv: xyz\n",
        b"\xff\xfe",
    ],
)
def test_what_is_no_cache_is_refused(cache: bytes) -> None:
    with pytest.raises(ScaleError, match="the calibration cache: not one of TensorRT's"):
        scales_from_cache(cache)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (replace(TABLE, symmetric=False), OptionError, "only zero point 0"),
        (replace(TABLE, bits=Bits(8, 6)), OptionError, "W8A6: TensorRT calibrates 8 bits"),
        (replace(TABLE, bits=Bits(16, 8)), OptionError, "W16A8: TensorRT calibrates 8 bits"),
        (replace(TABLE, tensors={"x": Scale("conv.0", 1e-40, 1e-38)}), ScaleError, "1e-40"),
        (replace(TABLE, tensors={"x": Scale("conv.0", 1e39, 1e41)}), ScaleError, "1e\\+39"),
        (replace(TABLE, tensors={"a\nb": Scale("conv.0", 1.0, 1.0)}), ScaleError, "one line"),
    ],
)
def test_a_table_that_no_cache_can_hold(
    table: ScaleTable, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibration_cache(table, "8.5.3.1", ENTROPY)
    with pytest.raises(error, match=message):
        set_dynamic_range(FakeNetwork([], []), table)


def test_the_module_needs_numpy_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('tensorrt', 'pycuda', 'onnx', 'onnxruntime', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "import speechquant.calibrators.tensorrt as module\n"
        "module.calibration_cache, module.set_dynamic_range\n"
        "try:\n"
        "    from speechquant.calibrators.tensorrt import StableQuantCalibrator\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.startswith(
        "MissingPackageError StableQuantCalibrator needs TensorRT up to 10"
    )
    assert done.stdout.endswith("pip install 'speechquant[tensorrt]' 'tensorrt<11'\n")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="EmaMinMaxCalibrator needs TensorRT up to 10"):
        _ = calibrators.EmaMinMaxCalibrator


def test_tensorrt_11_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "11.4.0")
    with pytest.raises(
        EngineError, match=r"TensorRT 11\.4\.0 has no calibrators.*speechquant build"
    ):
        _ = calibrators.StableQuantCalibrator
    with pytest.raises(AttributeError, match="no attribute 'LegacyCalibrator'"):
        _ = calibrators.LegacyCalibrator


def test_a_table_alone_asks_for_no_batch(trt8: types.ModuleType) -> None:
    stable, ema = calibrators.StableQuantCalibrator(TABLE), calibrators.EmaMinMaxCalibrator(TABLE)
    assert isinstance(stable, trt8.IInt8EntropyCalibrator2)
    assert isinstance(ema, trt8.IInt8MinMaxCalibrator)
    assert not isinstance(ema, trt8.IInt8EntropyCalibrator2)
    assert stable.read_calibration_cache() == CACHE
    assert ema.read_calibration_cache() == CACHE.replace(
        b"EntropyCalibration2", b"MinMaxCalibration"
    )
    assert (stable.get_batch_size(), stable.get_batch(["input_values"])) == (1, [])
    assert calibrators.StableQuantCalibrator is type(stable)
    assert type(stable).__name__ == "StableQuantCalibrator"


class FakeDriver:
    """A GPU's memory, as bytes by address."""

    Error = RuntimeError

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        self.context_depth = 0
        outer = self

        class Context:
            @staticmethod
            def pop() -> None:
                outer.context_depth -= 1

        self.Context = Context

    def init(self) -> None: ...

    def Device(self, index: int) -> Any:  # noqa: N802 - pycuda's name
        assert index == 0

        def push() -> None:
            self.context_depth += 1

        context = types.SimpleNamespace(push=push)
        return types.SimpleNamespace(retain_primary_context=lambda: context)

    def mem_alloc(self, size: int) -> int:
        assert self.context_depth == 1
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = bytearray(size)
        return address

    def memcpy_htod(self, address: int, values: np.ndarray[Any, Any]) -> None:
        assert self.context_depth == 1
        assert len(self.memory[address]) >= values.nbytes
        self.memory[address][: values.nbytes] = values.tobytes()

    def at(self, address: int, dtype: str, count: int) -> list[float]:
        return np.frombuffer(bytes(self.memory[address]), dtype, count).tolist()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)  # type: ignore[arg-type]
    return fake


def batches(cache_file: Path, count: int = 2) -> CalibrationBatches:
    feeds = [
        {
            "input_values": np.full((1, 4), number + 0.25, np.float32),
            "input_lengths": np.array([4 - number], np.int64),
        }
        for number in range(count)
    ]
    return CalibrationBatches(feeds, 1, cache_file)


def test_batches_lie_on_the_gpu_in_the_order_of_the_names(
    trt8: types.ModuleType, driver: FakeDriver, tmp_path: Path
) -> None:
    calibrator = calibrators.StableQuantCalibrator(TABLE, batches(tmp_path / "cache"))
    assert calibrator.read_calibration_cache() is None
    lengths, values = calibrator.get_batch(["input_lengths", "input_values"])
    assert driver.at(values, "f4", 4) == [0.25] * 4
    assert driver.at(lengths, "i4", 1) == [4]  # TensorRT 8 has no int64
    assert calibrator.get_batch(["input_lengths", "input_values"]) == [lengths, values]
    assert driver.at(values, "f4", 4) == [1.25] * 4
    assert driver.at(lengths, "i4", 1) == [3]
    assert calibrator.get_batch(["input_lengths", "input_values"]) == []
    assert len(driver.memory) == 2
    assert (driver.context_depth, calibrator.error) == (0, None)


def test_tensorrt_10_takes_int64(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, tmp_path: Path
) -> None:
    stand_in(monkeypatch, "10.9.0.34", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
    calibrator = calibrators.EmaMinMaxCalibrator(TABLE, batches(tmp_path / "cache"))
    (lengths,) = calibrator.get_batch(["input_lengths"])
    assert driver.at(lengths, "i8", 1) == [4]


def test_what_tensorrt_found_completes_the_table(trt8: types.ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    found = b"TRT-8503-EntropyCalibration2\nlogits: 40000000\nblock.input: 3f800000\n"
    calibrators.StableQuantCalibrator(TABLE, batches(kept)).write_calibration_cache(found)
    second = calibrators.StableQuantCalibrator(TABLE, batches(kept))
    cache = second.read_calibration_cache()
    assert cache is not None
    assert cache.startswith(b"TRT-8503-EntropyCalibration2\n")
    assert scales_from_cache(cache) == {"logits": 2.0, "block.input": 0.15625, "conv.0.input": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_another_table_replaces_only_what_it_names(trt8: types.ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    kept.write_bytes(b"TRT-8503-EntropyCalibration2\nlogits: 40000000\nconv.0.input: 3f800000\n")
    table = replace(TABLE, tensors={"conv.0.input": Scale("conv.0", 0.25, 31.75)})
    cache = calibrators.StableQuantCalibrator(table, batches(kept)).read_calibration_cache()
    assert cache is not None
    assert scales_from_cache(cache) == {"logits": 2.0, "conv.0.input": 0.25}


def test_a_kept_cache_of_another_version_is_refused(trt8: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(CACHE)
    with pytest.raises(
        ScaleError, match="made for TRT-8503-EntropyCalibration2, this is TRT-8503-M"
    ):
        calibrators.EmaMinMaxCalibrator(TABLE, batches(tmp_path / "cache"))


def test_nothing_of_a_failed_calibration_is_kept(
    trt8: types.ModuleType, driver: FakeDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrator = calibrators.StableQuantCalibrator(TABLE, batches(tmp_path / "cache"))
    assert calibrator.get_batch(["input_values", "attention_mask"]) == []
    assert isinstance(calibrator.error, OptionError)
    assert "attention_mask is not in the batch" in caplog.text
    calibrator.write_calibration_cache(CACHE)
    assert list(tmp_path.iterdir()) == []


def test_batches_without_pycuda_say_how_to_get_it(
    trt8: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    calibrator = calibrators.StableQuantCalibrator(TABLE, batches(tmp_path / "cache"))
    assert calibrator.get_batch(["input_values"]) == []
    assert isinstance(calibrator.error, MissingPackageError)
    assert "pip install pycuda" in str(calibrator.error)


def test_batches_of_no_clip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="batches of 0 clips"):
        CalibrationBatches([], 0, tmp_path / "cache")


@dataclass
class FakeTensor:
    name: str
    range: tuple[float, float] | None = None

    def set_dynamic_range(self, low: float, high: float) -> bool:
        self.range = (low, high)
        return high < 1000


@dataclass
class FakeNetwork:
    """What `set_dynamic_range` reads of a network: TensorRT's names, nothing else."""

    inputs: Sequence[Any]
    layers: Sequence[Sequence[Any]]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_layer(self, index: int) -> Any:
        outputs = self.layers[index]
        return types.SimpleNamespace(num_outputs=len(outputs), get_output=lambda n: outputs[n])


def test_dynamic_ranges_of_a_whole_network() -> None:
    values, hidden, other = FakeTensor("conv.0.input"), FakeTensor("hidden"), FakeTensor("other")
    missing = set_dynamic_range(FakeNetwork([values], [[hidden, other], []]), TABLE)
    assert missing == ("block.input",)
    assert values.range == (-63.5, 63.5)  # 127 * 0.5
    assert (hidden.range, other.range) == (None, None)


def test_a_range_that_cannot_be_set_is_named() -> None:
    table = replace(TABLE, tensors={"x": Scale("conv.0", 10.0, 1270.0)})
    with pytest.raises(EngineError, match=r"refuses the range \+-1270\.0 of x"):
        set_dynamic_range(FakeNetwork([FakeTensor("x")], []), table)
    without = types.SimpleNamespace(name="x")
    with pytest.raises(EngineError, match=r"no dynamic ranges.*speechquant build"):
        set_dynamic_range(FakeNetwork([without], []), table)


def test_hex_is_big_endian() -> None:
    value = 0.0123
    table = replace(TABLE, tensors={"x": Scale("conv.0", value, 127 * value)})
    line = calibration_cache(table, "8.5.3.1", ENTROPY).decode().splitlines()[1]
    assert line == f"x: {struct.pack('>f', value).hex()}"
