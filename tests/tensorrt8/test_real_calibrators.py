"""The calibrator classes on the real TensorRT 8.5, called as TensorRT calls them; needs no GPU.

`make test-tensorrt8` runs this with Python 3.10, for which the whole library is to be had.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechquant.calibrators import tensorrt as calibrators
from speechquant.calibrators.tensorrt import CalibrationBatches, version_number
from speechquant.core.scales import Bits, Scale, ScaleTable

trt = pytest.importorskip(
    "tensorrt", reason="needs the real tensorrt 8.5.3.1: make test-tensorrt8", exc_type=ImportError
)
if not trt.__version__.startswith("8.5."):
    pytest.skip(f"about TensorRT 8.5, this is {trt.__version__}", allow_module_level=True)

TABLE = ScaleTable("model", "stablequant", Bits(), {"conv.0.input": Scale("conv.0", 0.5, 63.5)})
# The order of the virtual functions of nvinfer1::IInt8Calibrator.
GET_BATCH_SIZE, GET_BATCH, READ_CACHE, WRITE_CACHE, GET_ALGORITHM = range(5)
Pointers = ctypes.POINTER(ctypes.c_void_p)


def virtual(calibrator: Any, index: int, result: Any, *types: Any) -> Callable[..., Any]:
    """A virtual function of the C++ object inside a calibrator, which is what TensorRT calls."""
    # pybind11 keeps the address of the C++ object right after Python's own fields.
    this = ctypes.cast(id(calibrator) + object.__basicsize__, Pointers)[0]
    functions = ctypes.cast(ctypes.cast(this, Pointers)[0], Pointers)
    function = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *types)(functions[index])
    return lambda *values: function(this, *values)


def read_cache(calibrator: Any) -> bytes | None:
    size = ctypes.c_size_t()
    read = virtual(calibrator, READ_CACHE, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))
    address = read(ctypes.byref(size))
    return None if not address else ctypes.string_at(address, size.value)


def get_batch(calibrator: Any, names: list[str]) -> list[int] | None:
    addresses = (ctypes.c_void_p * len(names))()
    encoded = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
    call = virtual(
        calibrator, GET_BATCH, ctypes.c_bool, type(addresses), type(encoded), ctypes.c_int32
    )
    return [address or 0 for address in addresses] if call(addresses, encoded, len(names)) else None


def test_the_library_is_the_one_this_is_about() -> None:
    assert trt.__version__ == "8.5.3.1"


def test_the_version_in_the_cache_is_the_librarys_own() -> None:
    library = ctypes.CDLL(str(Path(trt.__file__).parent / "libnvinfer.so.8"))
    assert version_number(trt.__version__) == library.getInferLibVersion()


@pytest.mark.parametrize(
    ("name", "base", "algorithm", "header"),
    [
        (
            "StableQuantCalibrator",
            "IInt8EntropyCalibrator2",
            "ENTROPY_CALIBRATION_2",
            b"TRT-8503-EntropyCalibration2",
        ),
        (
            "EmaMinMaxCalibrator",
            "IInt8MinMaxCalibrator",
            "MINMAX_CALIBRATION",
            b"TRT-8503-MinMaxCalibration",
        ),
    ],
)
def test_tensorrt_reads_the_table(name: str, base: str, algorithm: str, header: bytes) -> None:
    calibrator = getattr(calibrators, name)(TABLE)
    assert isinstance(calibrator, getattr(trt, base))
    assert isinstance(calibrator, trt.IInt8Calibrator)
    assert calibrator.get_algorithm() == getattr(trt.CalibrationAlgoType, algorithm)
    assert virtual(calibrator, GET_ALGORITHM, ctypes.c_int32)() == int(calibrator.get_algorithm())
    assert read_cache(calibrator) == header + b"\nconv.0.input: 3f000000\n"
    assert virtual(calibrator, GET_BATCH_SIZE, ctypes.c_int32)() == 1
    assert get_batch(calibrator, ["input_values"]) is None


def test_the_algorithms_are_named_as_the_library_names_them() -> None:
    # The library compares the first line of a cache with names that it holds as plain text.
    text = (Path(trt.__file__).parent / "libnvinfer.so.8").read_bytes()
    assert b"\0EntropyCalibration2\0" in text
    assert b"\0MinMaxCalibration\0" in text


def test_batches_and_what_tensorrt_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class HostMemory:
        """Stands in for the GPU's, which is not there."""

        def put(self, name: str, values: np.ndarray[Any, Any]) -> int:
            return {"input_values": 4096, "input_lengths": 8192}[name]

    monkeypatch.setattr(calibrators, "DeviceInputs", HostMemory)
    feeds = {"input_values": np.zeros((2, 400), np.float32), "input_lengths": np.array([400, 400])}
    batches = CalibrationBatches([feeds], 2, tmp_path / "cache")
    calibrator = calibrators.StableQuantCalibrator(TABLE, batches)
    assert read_cache(calibrator) is None
    assert virtual(calibrator, GET_BATCH_SIZE, ctypes.c_int32)() == 2
    assert get_batch(calibrator, ["input_lengths", "input_values"]) == [8192, 4096]
    assert get_batch(calibrator, ["input_lengths", "input_values"]) is None
    found = b"TRT-8503-EntropyCalibration2\nlogits: 40000000\nconv.0.input: 3f800000\n"
    write = virtual(calibrator, WRITE_CACHE, None, ctypes.c_char_p, ctypes.c_size_t)
    write(found, len(found))
    expected = b"TRT-8503-EntropyCalibration2\nlogits: 40000000\nconv.0.input: 3f000000\n"
    assert (tmp_path / "cache").read_bytes() == expected
    assert read_cache(calibrator) == expected


def test_tensorrt_cannot_see_an_error_and_goes_on(tmp_path: Path) -> None:
    batches = CalibrationBatches([{"input_values": np.zeros(4)}], 1, tmp_path / "cache")
    calibrator = calibrators.EmaMinMaxCalibrator(TABLE, batches)
    assert get_batch(calibrator, ["input_lengths"]) is None
    assert "input_lengths is not in the batch" in str(calibrator.error)
    write = virtual(calibrator, WRITE_CACHE, None, ctypes.c_char_p, ctypes.c_size_t)
    write(b"TRT-8503-MinMaxCalibration\n", 27)
    assert list(tmp_path.iterdir()) == []


def test_tensors_have_dynamic_ranges() -> None:
    # A network to set them in takes a builder, and that a GPU; the method is there.
    assert "min: float, max: float) -> bool" in trt.ITensor.set_dynamic_range.__doc__
