"""TensorRT's own calibration, up to TensorRT 10 where it ends: a scale table handed over.

`StableQuantCalibrator` and `EmaMinMaxCalibrator` are subclasses of TensorRT's
`IInt8EntropyCalibrator2` and `IInt8MinMaxCalibrator`, made when they are first asked for: nothing
here needs tensorrt before. They take the float network, without Q/DQ nodes (with them TensorRT uses
no calibrator), and its tensors must bear the names that the bundle gives them.

What they hand over is a calibration cache. TensorRT takes every scale in it as it is, and then asks
for no batch, whether the cache is complete or not. But this implicit quantization needs a scale for
every tensor of the network, and a table has those of the inputs of layers with weights only. Around
a tensor without one TensorRT warns ("Missing scale and zero-point"), and the layers that read or
write it fall back to float, or FP16 where the builder may use it. So with the table alone many
layers with weights are not INT8, because their outputs have no scale.

`CalibrationBatches` mend that in two builds. The first finds no cache: TensorRT calibrates all
tensors by its own algorithm, and the result is kept with the table's scales put in. The second
takes it from there. Layers that the table leaves in float get TensorRT's scales too then; only a
precision set in the network keeps them float.

A Q/DQ bundle has none of these limits, and is the only way from TensorRT 11 on.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from speechquant.calibrators.methods import EMA
from speechquant.core.errors import (
    EngineError,
    MissingPackageError,
    OptionError,
    ScaleError,
)
from speechquant.core.files import new_file
from speechquant.core.scales import Bits, ScaleTable, largest_level

log = logging.getLogger(__name__)

ENTROPY, MIN_MAX = "EntropyCalibration2", "MinMaxCalibration"
_LAST_WITH_CALIBRATORS = 10
_FIRST_WITH_INT64 = 10
_BITS = 8
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_MEND = "delete it and let TensorRT calibrate again"

Feeds = Mapping[str, NDArray[Any]]


def version_number(version: str) -> int:
    """Return what TensorRT makes of its version: 8.5.3.1 is 8503, 10.9.0 is 100900."""
    try:
        major, minor, patch = (int(part) for part in version.split(".")[:3])
    except ValueError as error:
        raise OptionError(f"TensorRT version {version!r}: give one such as 8.5.3.1") from error
    return major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch


def calibration_cache(table: ScaleTable, version: str, algorithm: str) -> bytes:
    """Return the table as the calibration cache of a TensorRT `version` and calibration algorithm.

    Raises OptionError for a table that TensorRT has no integers for, and ScaleError for a tensor or
    scale that a cache cannot hold.
    """
    return _cache_of(f"TRT-{version_number(version)}-{algorithm}", table_scales(table))


def algorithm_of(method: str) -> str:
    """Return what TensorRT calls the calibration whose cache holds the scales of a method."""
    return MIN_MAX if method == EMA else ENTROPY


def cache_version(asked_for: str | None) -> str:
    """Return the version of TensorRT to write a cache for, the installed one for None.

    Raises MissingPackageError where none is installed, EngineError for one without calibrators and
    OptionError for what is no version.
    """
    version = _installed_version() if asked_for is None else asked_for
    version_number(version)
    if int(version.split(".")[0]) > _LAST_WITH_CALIBRATORS:
        raise EngineError(_no_calibrators("a calibration cache", version))
    return version


def _installed_version() -> str:
    try:
        return str(import_module("tensorrt").__version__)
    except ImportError as error:
        raise MissingPackageError(
            f"a calibration cache says which TensorRT reads it, and none is installed ({error}); "
            "give its version with --tensorrt-version, such as 10.9.0"
        ) from error


def _cache_of(header: str, scales: Mapping[str, float]) -> bytes:
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "".join(f"{line}\n" for line in [header, *lines]).encode()


def read_cache(cache: bytes, where: str) -> tuple[str, dict[str, float]]:
    """Return the first line of a calibration cache, and its scales by tensor; raises ScaleError."""
    try:
        header, *lines = cache.decode().splitlines()
        if not header.startswith("TRT-"):
            raise ValueError(f"its first line is {header!r}")
        scales = dict(_scale_of_line(line) for line in lines if line)
    except ValueError as error:
        raise ScaleError(f"{where}: not one of TensorRT's ({error}); {_MEND}") from error
    return header, scales


def _scale_of_line(line: str) -> tuple[str, float]:
    # A tensor's name may hold a colon itself, as those from TensorFlow do.
    name, colon, digits = line.rpartition(": ")
    if not colon or len(digits) > 8:
        raise ValueError(f"no scale in the line {line!r}")
    # TensorRT leaves out leading zeros.
    scale: float = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
    return name, scale


def table_scales(table: ScaleTable) -> dict[str, float]:
    """Return the scales of a table by tensor, where TensorRT can use them.

    Raises OptionError for an asymmetric table or one of other than 8 bits, ScaleError for a scale
    beyond float32 or a name of two lines.
    """
    if not table.symmetric:
        raise OptionError(
            "the scale table is asymmetric, and TensorRT takes only zero point 0; "
            "calibrate symmetrically"
        )
    if table.bits != Bits(_BITS, _BITS):
        raise OptionError(
            f"{table.bits.name}: TensorRT calibrates {_BITS} bits; make a table of as many"
        )
    for name, row in table.tensors.items():
        if not _SMALLEST <= row.scale <= _LARGEST:
            raise ScaleError(
                f"the scale of {name} is {row.scale}, which float32 cannot hold; "
                "calibrate on data that reaches this tensor"
            )
        if name.splitlines() != [name]:
            raise ScaleError(f"the tensor name {name!r} does not fit into one line; rename it")
    return {name: row.scale for name, row in table.tensors.items()}


def set_dynamic_range(network: Any, table: ScaleTable) -> tuple[str, ...]:
    """Give each tensor of a TensorRT network that the table names its range of +-127 scales.

    The other tensors keep theirs. Returns the tensors of the table that the network lacks. Raises
    EngineError where TensorRT has no ranges (11 and later) or refuses one, and what `table_scales`
    raises.
    """
    scales = table_scales(table)
    found: set[str] = set()
    for tensor in _tensors_of(network):
        if tensor.name not in scales or tensor.name in found:
            continue
        if not hasattr(tensor, "set_dynamic_range"):
            raise EngineError(f"this TensorRT has no dynamic ranges; {_USE_THE_BUNDLE}")
        reach = largest_level(_BITS) * scales[tensor.name]
        if not tensor.set_dynamic_range(-reach, reach):
            raise EngineError(
                f"TensorRT refuses the range +-{reach} of {tensor.name}; {_USE_THE_BUNDLE}"
            )
        found.add(tensor.name)
    return tuple(name for name in scales if name not in found)


def _tensors_of(network: Any) -> Iterator[Any]:
    yield from (network.get_input(index) for index in range(network.num_inputs))
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        yield from (layer.get_output(output) for output in range(layer.num_outputs))


@dataclass(frozen=True)
class CalibrationBatches:
    """What TensorRT calibrates the tensors on that a table lacks, and where it keeps the result.

    Each of `feeds` has every input of the network, in the shape that the calibration profile calls
    its best one; `size` is the clips in each. Raises OptionError for a size below 1.
    """

    feeds: Iterable[Feeds]
    size: int
    cache_file: Path

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError(f"batches of {self.size} clips; give at least 1")


def _driver() -> Any:
    try:
        driver = import_module("pycuda.driver")
    except ImportError as error:
        raise MissingPackageError(
            f"batches for TensorRT's calibration need pycuda and an NVIDIA driver ({error}): "
            "pip install pycuda"
        ) from error
    try:
        driver.init()
    except driver.Error as error:
        raise EngineError(
            f"no GPU to calibrate on ({error}); a table alone needs none, leave the batches out"
        ) from error
    return driver


class DeviceInputs:
    """Arrays on the GPU, each in a buffer that the next of its name goes into too."""

    def __init__(self) -> None:
        self._driver = _driver()
        # The one that TensorRT works in; a context of our own would hold memory it cannot see.
        self._context = self._driver.Device(0).retain_primary_context()
        self._buffers: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def put(self, name: str, values: NDArray[Any]) -> int:
        """Copy an array to the GPU and return its address there."""
        values = np.ascontiguousarray(values)
        self._context.push()
        try:
            if self._sizes.get(name, 0) < values.nbytes:
                self._buffers[name] = self._driver.mem_alloc(values.nbytes)
                self._sizes[name] = values.nbytes
            self._driver.memcpy_htod(self._buffers[name], values)
        finally:
            self._driver.Context.pop()
        return int(self._buffers[name])


class TableCalibrator:
    """What a calibrator made from a scale table does; TensorRT's base is added when it is imported.

    `error` is what went wrong while TensorRT asked for a batch, None for nothing. TensorRT itself
    goes on as if the data had ended, so nothing of such a calibration is kept.
    """

    algorithm: ClassVar[str]
    version: ClassVar[str]

    def __init__(self, table: ScaleTable, batches: CalibrationBatches | None = None) -> None:
        super().__init__()
        self._table = table
        self._own = calibration_cache(table, self.version, self.algorithm)
        self._batches = batches
        self._left = iter(batches.feeds) if batches is not None else iter(())
        self._device: DeviceInputs | None = None
        self.error: Exception | None = None
        self.read_calibration_cache()  # a kept cache that cannot be used is refused here

    def get_batch_size(self) -> int:
        """Return the clips in a batch."""
        return 1 if self._batches is None else self._batches.size

    def get_batch(self, names: list[str]) -> list[int]:
        """Return where on the GPU the next batch's inputs lie; nothing after the last one."""
        # TensorRT prints what is raised through it and takes it for the end of the data.
        try:
            feeds = next(self._left, None)
            return [] if feeds is None else [self._put(name, feeds) for name in names]
        except Exception as error:
            log.error("calibration ends: %s", error)
            self.error = error
            return []

    def _put(self, name: str, feeds: Feeds) -> int:
        if name not in feeds:
            raise OptionError(f"the network's input {name} is not in the batch; add it")
        self._device = self._device or DeviceInputs()
        values = feeds[name]
        if values.dtype == np.int64 and int(self.version.split(".")[0]) < _FIRST_WITH_INT64:
            values = values.astype(np.int32)  # as its parser declares such an input
        return self._device.put(name, values)

    def read_calibration_cache(self) -> bytes | None:
        """Return the scales as TensorRT reads them, None where it has to calibrate first."""
        if self._batches is None:
            return self._own
        if not self._batches.cache_file.is_file():
            return None
        where = str(self._batches.cache_file)
        header, scales = read_cache(self._batches.cache_file.read_bytes(), where)
        wanted = read_cache(self._own, where)[0]
        if header != wanted:
            raise ScaleError(f"{where}: made for {header}, this is {wanted}; {_MEND}")
        return self._completed(header, scales)

    def write_calibration_cache(self, cache: Any) -> None:
        """Keep what TensorRT found, with the table's scales put in."""
        if self._batches is None or self.error is not None:
            return
        try:
            header, scales = read_cache(bytes(cache), "TensorRT's calibration")
            with new_file(self._batches.cache_file, force=True) as partial:
                partial.write_bytes(self._completed(header, scales))
        except Exception as error:  # as in get_batch: TensorRT would print it and go on
            log.error("the calibration cannot be kept: %s", error)
            self.error = error

    def _completed(self, header: str, scales: Mapping[str, float]) -> bytes:
        return _cache_of(header, {**scales, **table_scales(self._table)})


_BASES = {
    "StableQuantCalibrator": ("IInt8EntropyCalibrator2", ENTROPY),
    "EmaMinMaxCalibrator": ("IInt8MinMaxCalibrator", MIN_MAX),
}
_USE_THE_BUNDLE = (
    'write a Q/DQ bundle with "speechquant quantize --qdq-format s8" and build that with '
    '"speechquant build"'
)


def __getattr__(name: str) -> Any:
    """Return a calibrator class; raises MissingPackageError, or EngineError from TensorRT 11 on."""
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _calibrator_class(name, _tensorrt(name))


def _tensorrt(user: str) -> ModuleType:
    try:
        tensorrt = import_module("tensorrt")
    except ImportError as error:
        raise MissingPackageError(
            f"{user} needs TensorRT up to {_LAST_WITH_CALIBRATORS} ({error}): "
            f"pip install 'speechquant[tensorrt]' 'tensorrt<{_LAST_WITH_CALIBRATORS + 1}'"
        ) from error
    if not hasattr(tensorrt, _BASES[user][0]):
        raise EngineError(_no_calibrators(user, tensorrt.__version__))
    return tensorrt


def _no_calibrators(user: str, version: str) -> str:
    return (
        f"{user}: TensorRT {version} has no calibrators, they ended with TensorRT "
        f"{_LAST_WITH_CALIBRATORS}; {_USE_THE_BUNDLE}"
    )


@lru_cache
def _calibrator_class(name: str, tensorrt: ModuleType) -> type[TableCalibrator]:
    base, algorithm = _BASES[name]
    members = {
        "__doc__": f"A scale table as TensorRT's {base}: see `TableCalibrator`.",
        "__module__": __name__,
        "algorithm": algorithm,
        "version": tensorrt.__version__,
    }
    return type(name, (TableCalibrator, getattr(tensorrt, base)), members)
