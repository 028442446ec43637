"""Engines of TensorRT or TensorRT-RTX that hand values to each other in the memory of one GPU."""

from __future__ import annotations

import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.engine_folders import EngineGraph, Limits
from speechquant.core.errors import EngineError
from speechquant.core.seq2seq import ENCODER
from speechquant.engines.runners import Tensors
from speechquant.engines.tensorrt.device import Buffer, TensorRtDevice, named_sizes

Entered = TypeVar("Entered", bound="TensorRtValues")


@dataclass(frozen=True, eq=False)
class DeviceValue:
    """A tensor on the GPU; its memory is another's once nobody holds it any more."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def host(self) -> NDArray[Any]:
        """What is copied from and to, as an array."""
        return self.buffer.host[: self.size].view(self.dtype).reshape(self.shape)


class DeviceMemory:
    """The memory that several engines share, and the lock around the GPU's one line of work."""

    def __init__(self, device: TensorRtDevice) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._buffers: list[Buffer] = []
        self._unused: defaultdict[int, list[Buffer]] = defaultdict(list)
        self._is_open = True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let this thread alone use the GPU; raises EngineError once the session is closed."""
        with self._lock:
            if not self._is_open:
                raise EngineError("this session is closed; open another")
            with self._device.activated():
                yield

    def new_value(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceValue:
        """Return a value with no content yet; within `in_use`."""
        # To the next power of two: a cache that grows by a token seldom asks for another size.
        size = 1 << max(math.prod(shape) * dtype.itemsize - 1, 0).bit_length()
        unused = self._unused[size]
        buffer = unused.pop() if unused else self._new_buffer(size)
        value = DeviceValue(buffer, shape, dtype)
        # What is queued next runs after what is queued now, so the memory can be written at once.
        weakref.finalize(value, unused.append, buffer).atexit = False
        return value

    def _new_buffer(self, size: int) -> Buffer:
        try:
            buffer = self._device.new_buffer(size)
        except EngineError:
            # What waits for values of other sizes may be what is missing.
            self._free_unused()
            buffer = self._device.new_buffer(size)
        self._buffers.append(buffer)
        return buffer

    def _free_unused(self) -> None:
        for unused in self._unused.values():
            while unused:
                buffer = unused.pop()
                self._buffers.remove(buffer)
                buffer.free()

    def upload(self, array: NDArray[Any]) -> DeviceValue:
        """Return a value with a copy of an array; within `in_use`."""
        value = self.new_value(array.shape, array.dtype)
        np.copyto(value.host, array)
        value.buffer.upload(value.size)
        # The memory on the host may be written again as soon as nobody holds the value.
        self._device.wait()
        return value

    def download(self, value: DeviceValue) -> NDArray[Any]:
        """Return an array with a copy of a value; within `in_use`."""
        value.buffer.download(value.size)
        self._device.wait()
        return value.host.copy()

    def close(self) -> None:
        """Give all memory back, that of values which somebody holds as well."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            with self._device.activated():
                for buffer in self._buffers:
                    buffer.free()


class TensorRtValues:
    """A session on the engine of one graph, which runs on values in `memory`; a context manager.

    The decoder's shapes change with every token, so no CUDA graph is captured of it.
    """

    def __init__(self, engine: EngineGraph, device: TensorRtDevice, memory: DeviceMemory) -> None:
        self._engine, self._device, self._memory = engine, device, memory
        self.provider = engine.manifest.backend
        self._is_open = True
        self._placed: dict[str, tuple[int, tuple[int, ...]]] = {}
        with memory.in_use():
            self._execution = device.new_execution(repeats=engine.name == ENCODER)

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._memory.close()
        with self._device.activated():
            self._execution.free()
        self._device.close()

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError for what the engine cannot take."""
        runs = self.new_runs()
        for name, array in feeds.items():
            runs.bind(name, self.value_of(array))
        return {name: self.array_of(value) for name, value in runs.run().items()}

    def value_of(self, array: NDArray[Any]) -> DeviceValue:
        """Return a value with a copy of an array."""
        with self._memory.in_use():
            return self._memory.upload(np.asarray(array))

    def array_of(self, value: DeviceValue) -> NDArray[Any]:
        """Return an array with a copy of a value."""
        with self._memory.in_use():
            return self._memory.download(value)

    def new_runs(self) -> TensorRtRuns:
        """Return runs of their own inputs."""
        return TensorRtRuns(self)

    def fitting(self, name: str, value: DeviceValue) -> DeviceValue:
        """Return a value in the type that an input has; raises EngineError where it has none."""
        dtype = self._device.inputs.get(name)
        if dtype is None:
            raise self._refused(f"has no input {name}, but {', '.join(self._device.inputs)}")
        if value.dtype == dtype:
            return value
        if not np.can_cast(value.dtype, dtype, "same_kind"):
            raise self._refused(f"{name} is {value.dtype}, the engine takes {dtype}")
        return self.value_of(self.array_of(value).astype(dtype))

    def execute(self, inputs: Mapping[str, DeviceValue]) -> dict[str, DeviceValue]:
        """Queue the network on values and return those of its outputs."""
        self._check(inputs)
        with self._memory.in_use():
            for name, value in inputs.items():
                self._place(name, value, is_input=True)
            outputs = {}
            for name, dtype in self._device.outputs.items():
                shape = self._execution.shape_of(name)
                outputs[name] = self._memory.new_value(shape, dtype)
                self._place(name, outputs[name], is_input=False)
            self._execution.enqueue()
        return outputs

    def _place(self, name: str, value: DeviceValue, *, is_input: bool) -> None:
        # The keys and values of the encoder are where they were at the token before.
        place = (value.buffer.address, value.shape)
        if self._placed.get(name) == place:
            return
        if is_input:
            self._execution.set_shape(name, value.shape)
        self._execution.place(name, value.buffer.address)
        self._placed[name] = place

    def _check(self, inputs: Mapping[str, DeviceValue]) -> None:
        missing = sorted(set(self._device.inputs) - set(inputs))
        if missing:
            raise self._refused(f"is not given its input {missing[0]}")
        shapes = {name: value.shape for name, value in inputs.items()}
        sizes = named_sizes(self._engine.inputs, shapes, self._refused)
        for dim, limits in self._engine.manifest.limits.items():
            if dim in sizes:
                self._check_size(dim, sizes[dim], limits)

    def _check_size(self, dim: str, size: int, limits: Limits) -> None:
        if not limits.least <= size <= limits.most:
            raise self._refused(f"{dim} is {size}, and it takes {limits.least} to {limits.most}")

    def _refused(self, reason: str) -> EngineError:
        return EngineError(f"{self._engine.folder}: {self._engine.manifest.engine_file}: {reason}")


class TensorRtRuns:
    """Runs of an engine on values; an output's memory is free once nobody holds the value."""

    def __init__(self, session: TensorRtValues) -> None:
        self._session = session
        self._bound: dict[str, DeviceValue] = {}

    def bind(self, name: str, value: DeviceValue) -> None:
        """Give an input its value."""
        self._bound[name] = self._session.fitting(name, value)

    def run(self) -> dict[str, DeviceValue]:
        """Return the value of every output by name."""
        return self._session.execute(self._bound)


NewDevice = Callable[[EngineGraph, "TensorRtDevice | None"], TensorRtDevice]


def open_together(
    engines: Mapping[str, EngineGraph], new_device: NewDevice = TensorRtDevice
) -> dict[str, TensorRtValues]:
    """Return sessions on engines that share a GPU's memory; raises as TensorRtDevice does."""
    devices: dict[str, TensorRtDevice] = {}
    with ExitStack() as opened:  # closes what is open where a later one cannot be loaded
        for name, engine in engines.items():
            devices[name] = new_device(engine, next(iter(devices.values()), None))
            opened.callback(devices[name].close)
        memory = DeviceMemory(next(iter(devices.values())))
        sessions = {
            name: TensorRtValues(engine, devices[name], memory) for name, engine in engines.items()
        }
        opened.pop_all()
    return sessions
