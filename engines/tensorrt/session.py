"""A session on an engine of TensorRT (8.5 to 11) or TensorRT-RTX.

It knows limits, buffers and which shapes repeat; what it asks of a GPU is in `TensorRtDevice`,
whose calls but `close` happen within `activated`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.engine_folders import Engine, Limits
from speechquant.core.errors import EngineError
from speechquant.engines.build_options import BATCH, SAMPLES
from speechquant.engines.runners import Tensors
from speechquant.engines.tensorrt.device import Buffer, Execution, TensorRtDevice, named_sizes

log = logging.getLogger(__name__)

# Each keeps a context of TensorRT, which takes host memory; the GPU's they share.
_MOST_GRAPHS = 8
_MOST_SHAPES_REMEMBERED = 256
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Entered = TypeVar("Entered", bound="TensorRtSession")


class TensorRtSession:
    """Runs an engine on the first GPU; a context manager, whose `run` any thread may call.

    `last_milliseconds` is how long the network took in the latest run, whichever thread's, without
    the copies to and from the GPU. Raises EngineError and MissingPackageError.
    """

    def __init__(self, engine: Engine, device: TensorRtDevice | None = None) -> None:
        self._engine = engine.only_graph
        self._rate_hz = engine.spec.sample_rate_hz
        self._device = device or TensorRtDevice(self._engine)
        # One stream and one set of buffers: a second thread waits, as it would for the GPU.
        self._lock = threading.Lock()
        self._buffers: dict[str, Buffer] = {}
        self._graphs: OrderedDict[Shapes, Execution] = OrderedDict()
        self._seen: OrderedDict[Shapes, None] = OrderedDict()
        self._captures_graphs = self._device.captures_graphs
        self._is_open = True
        self.last_milliseconds = 0.0
        self.provider = engine.manifest.backend
        with self._device.activated():
            self._any_shape = self._device.new_execution()

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            with self._device.activated():
                self._drop_graphs()
                self._any_shape.free()
                for buffer in self._buffers.values():
                    buffer.free()
            self._device.close()

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name; a batch above the engine's limit runs in parts.

        Raises EngineError for what the engine cannot take, a clip beyond its limits among others.
        """
        parts = self._parts(self._checked(feeds))
        with self._lock:
            if not self._is_open:
                raise EngineError(f"{self._engine.folder}: this session is closed; open another")
            with self._device.activated():
                done = [self._run_part(part) for part in parts]
            self.last_milliseconds = sum(milliseconds for _, milliseconds in done)
        return {
            name: np.concatenate([outputs[name] for outputs, _ in done])
            for name in self._device.outputs
        }

    def _checked(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        wrong = set(arrays) ^ set(self._device.inputs)
        if wrong:
            inputs = ", ".join(self._device.inputs)
            raise self._refused(f"the inputs are {inputs}, and {min(wrong)} is not in both")
        for name, dtype in self._device.inputs.items():
            if not np.can_cast(arrays[name].dtype, dtype, "same_kind"):
                raise self._refused(f"{name} is {arrays[name].dtype}, the engine takes {dtype}")
        return arrays

    def _parts(self, feeds: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
        shapes = {tensor.name: feeds[tensor.name].shape for tensor in self._engine.inputs}
        sizes = named_sizes(self._engine.inputs, shapes, self._refused)
        samples, batch, manifest = sizes[SAMPLES], sizes[BATCH], self._engine.manifest
        limits = manifest.limits.get(SAMPLES)
        if limits is not None and not limits.least <= samples <= limits.most:
            raise self._refused(
                f"a clip of {self._length(samples)}, and the engine takes "
                f"{self._length(limits.least)} to {self._length(limits.most)}; cut or pad it, or "
                "build the engine with other --lengths"
            )
        rows = manifest.limits.get(BATCH) or Limits(1, 1, max(batch, 1))
        count = max(math.ceil(batch / rows.most), 1)
        if batch < rows.least * count:
            raise self._refused(
                f"a batch of {batch} does not divide into batches of {rows.least} to {rows.most}, "
                "which the engine takes; build it with another --batch"
            )
        pieces = {name: np.array_split(value, count) for name, value in feeds.items()}
        return [{name: pieces[name][part] for name in feeds} for part in range(count)]

    def _length(self, samples: int) -> str:
        return f"{samples} samples ({samples / self._rate_hz:.2f} s)"

    def _refused(self, reason: str) -> EngineError:
        return EngineError(f"{self._engine.folder}: {reason}")

    def _run_part(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], float]:
        shapes = tuple((name, feeds[name].shape) for name in self._device.inputs)
        if shapes in self._graphs:
            self._graphs.move_to_end(shapes)
            return self._execute(self._graphs[shapes], feeds)
        repeats = self._captures_graphs and self._was_seen(shapes)
        execution = self._device.new_execution() if repeats else self._any_shape
        for name, shape in shapes:
            execution.set_shape(name, shape)
        self._make_room(execution, feeds)
        for name, buffer in self._buffers.items():
            execution.place(name, buffer.address)
        result = self._execute(execution, feeds)
        if repeats:
            self._keep_graph(shapes, execution)
        return result

    def _was_seen(self, shapes: Shapes) -> bool:
        if shapes in self._seen:
            return True
        self._seen[shapes] = None
        if len(self._seen) > _MOST_SHAPES_REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _keep_graph(self, shapes: Shapes, execution: Execution) -> None:
        # TensorRT wants an execution to itself for each graph, and one run of it before.
        if not execution.capture():
            log.warning("warning: this engine has no CUDA graphs, each call queues its kernels")
            execution.free()
            self._captures_graphs = False
            return
        self._graphs[shapes] = execution
        if len(self._graphs) > _MOST_GRAPHS:
            forgotten, oldest = self._graphs.popitem(last=False)
            self._seen.pop(forgotten, None)
            oldest.free()

    def _drop_graphs(self) -> None:
        for execution in self._graphs.values():
            execution.free()
        self._graphs.clear()

    def _make_room(self, execution: Execution, feeds: Mapping[str, NDArray[Any]]) -> None:
        shapes = {name: value.shape for name, value in feeds.items()}
        shapes |= {name: execution.shape_of(name) for name in self._device.outputs}
        for name, dtype in {**self._device.inputs, **self._device.outputs}.items():
            size = max(math.prod(shapes[name]) * dtype.itemsize, 1)
            old = self._buffers.get(name)
            if old is not None and old.size >= size:
                continue
            self._drop_graphs()  # they hold the old address
            if old is not None:
                del self._buffers[name]
                old.free()
            # Up to the next power of two, so that clips of rising length do not each cost one.
            self._buffers[name] = self._device.new_buffer(1 << (size - 1).bit_length())

    def _execute(
        self, execution: Execution, feeds: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], float]:
        for name, value in feeds.items():
            host = self._host(name, value.shape, self._device.inputs[name])
            np.copyto(host, value, casting="same_kind")
            self._buffers[name].upload(host.nbytes)
        self._device.start_clock()
        execution.enqueue()
        self._device.stop_clock()
        outputs = {
            name: self._host(name, execution.shape_of(name), dtype)
            for name, dtype in self._device.outputs.items()
        }
        for name, host in outputs.items():
            self._buffers[name].download(host.nbytes)
        milliseconds = self._device.finish()
        return {name: host.copy() for name, host in outputs.items()}, milliseconds

    def _host(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        return self._buffers[name].host[:size].view(dtype).reshape(shape)
