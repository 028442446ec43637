"""All that a session on TensorRT (8.5 to 11) or TensorRT-RTX asks of a GPU, through pycuda."""

from __future__ import annotations

import ctypes
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.engine_folders import EngineGraph
from speechquant.core.errors import EngineError, one_line
from speechquant.core.onnx_files import require_packages
from speechquant.core.specs import TensorSpec
from speechquant.engines.tensorrt.library import RTX, BuildLog, load_library, logger_of
from speechquant.engines.tensorrt.targets import current_capability, require_runnable

log = logging.getLogger(__name__)

_NUMPY_TYPES = {
    "FLOAT": "f4",
    "HALF": "f2",
    "INT64": "i8",
    "INT32": "i4",
    "INT8": "i1",
    "BOOL": "?",
    "BF16": "u2",  # NumPy has none: what lies in it is only moved
}
_THIS_THREAD_ALONE = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class _RuntimeLog(BuildLog):
    """What TensorRT says while it runs: its errors kept, all of it handed to Python's logging."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    def write(self, severity: str, message: str) -> None:
        if "ERROR" in severity:
            self.errors[:] = [" ".join(message.split())]
        log.debug("%s: %s", severity, message)

    @property
    def reason(self) -> str:
        return self.errors[-1] if self.errors else "no reason given"


class Buffer:
    """Memory on the GPU; as much pinned memory on the host once it is asked for; copies queue."""

    def __init__(self, driver: Any, stream: Any, size: int) -> None:
        self._driver, self._stream, self.size = driver, stream, size
        self._memory = driver.mem_alloc(size)
        self.address = int(self._memory)

    @cached_property
    def host(self) -> NDArray[np.uint8]:
        """What is copied from and to."""
        pinned: NDArray[np.uint8] = self._driver.pagelocked_empty(self.size, np.uint8)
        return pinned

    def upload(self, size: int) -> None:
        """Copy the first `size` bytes to the GPU."""
        self._driver.memcpy_htod_async(self._memory, self.host[:size], self._stream)

    def download(self, size: int) -> None:
        """Copy the first `size` bytes from the GPU."""
        self._driver.memcpy_dtoh_async(self.host[:size], self._memory, self._stream)

    def free(self) -> None:
        """Give the memory back."""
        self._memory.free()
        if "host" in self.__dict__:
            self.host.base.free()  # type: ignore[union-attr]


class CudaGraph:
    """A recorded stream; of CUDA graphs pycuda knows nothing, so the driver is asked itself."""

    def __init__(self, stream: int) -> None:
        self._cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        self._stream, self._graph = ctypes.c_void_p(stream), ctypes.c_void_p()

    def record(self, enqueue: Callable[[], bool]) -> bool:
        """Return whether what `enqueue` queues can be launched from now on."""
        cuda, recorded = self._cuda, ctypes.c_void_p()
        if cuda.cuStreamBeginCapture_v2(self._stream, _THIS_THREAD_ALONE) != 0:
            return False
        is_queued = enqueue()
        has_ended = cuda.cuStreamEndCapture(self._stream, ctypes.byref(recorded)) == 0
        if not (has_ended and recorded):
            return False
        flags = ctypes.c_ulonglong(0)
        made = cuda.cuGraphInstantiateWithFlags(ctypes.byref(self._graph), recorded, flags)
        cuda.cuGraphDestroy(recorded)
        return is_queued and made == 0

    def launch(self) -> bool:
        """Queue what was captured and say whether that worked."""
        return bool(self._cuda.cuGraphLaunch(self._graph, self._stream) == 0)

    def free(self) -> None:
        """Give the graph back."""
        if self._graph:
            self._cuda.cuGraphExecDestroy(self._graph)


class Execution:
    """The network with shapes, addresses and at most one CUDA graph of its own."""

    def __init__(self, context: Any, stream: int, runtime_log: _RuntimeLog) -> None:
        self._context, self._stream, self._log = context, stream, runtime_log
        self._graph: CudaGraph | None = None

    def _require(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise EngineError(f"TensorRT cannot {what}: {self._log.reason}")

    def place(self, name: str, address: int) -> None:
        """Let a tensor lie at an address of the GPU."""
        self._require(self._context.set_tensor_address(name, address), f"place {name}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Say the shape of an input."""
        self._require(self._context.set_input_shape(name, shape), f"take {name} as {shape}")

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape that a tensor has for the inputs as they are."""
        shape = tuple(self._context.get_tensor_shape(name))
        self._require(min(shape, default=0) >= 0, f"tell the shape of {name}")
        return shape

    def enqueue(self) -> None:
        """Queue the network, as a captured graph where there is one."""
        if self._graph is not None:
            self._require(self._graph.launch(), "launch a CUDA graph")
        else:
            self._require(self._context.execute_async_v3(self._stream), "run the network")

    def capture(self) -> bool:
        """Capture the network as a graph and say whether that worked."""
        graph = CudaGraph(self._stream)
        if not graph.record(lambda: bool(self._context.execute_async_v3(self._stream))):
            graph.free()
            return False
        self._graph = graph
        return True

    def free(self) -> None:
        """Give the graph and the context back."""
        if self._graph is not None:
            self._graph.free()
        del self._context


def named_sizes(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    refused: Callable[[str], EngineError],
) -> dict[str, int]:
    """Return the size of each named dimension, in the order of `shapes`.

    Raises what `refused` makes of a reason where a shape does not fit, or two do not agree.
    """
    dims_of = {tensor.name: tensor.dims for tensor in inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        dims = dims_of[name]
        known = tuple(
            sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            for dim, size in zip(dims, shape, strict=False)
        )
        if known != shape or len(dims) != len(shape):
            raise refused(f"{name} is {shape}, which does not fit ({', '.join(map(str, dims))})")
    return sizes


def _refused(error: Exception) -> EngineError:
    reason = one_line(error)
    return EngineError(f"the GPU refuses ({reason}); free its memory, or give it less at once")


class TensorRtDevice:
    """The first GPU with an engine on it; raises EngineError and MissingPackageError.

    What is queued on it runs in one line with what is queued on the device `beside` it.
    """

    def __init__(self, engine: EngineGraph, beside: TensorRtDevice | None = None) -> None:
        library = load_library(engine.manifest.backend)
        require_packages("running on a GPU", ("pycuda",), extra="gpu")
        require_runnable(engine, library.version, current_capability())
        # TensorRT-RTX replaces kernels by better ones while it runs, and records its graphs itself.
        self.captures_graphs = engine.manifest.backend != RTX
        self._trt, self._driver = library.module, import_module("pycuda.driver")
        self._driver.init()
        # TensorRT works in this context, as everything of the CUDA runtime does.
        self._context = self._driver.Device(0).retain_primary_context()
        self._log = _RuntimeLog()
        self._logger = logger_of(library, self._log)
        with self.activated():
            self._stream: Any = self._driver.Stream() if beside is None else beside._stream
            self._clock = self._driver.Event(), self._driver.Event()
            self._plan = self._load(engine)
            self._scratch = self._new_scratch() if self.captures_graphs else None
        self.inputs, self.outputs = self._tensors(True), self._tensors(False)

    def _load(self, engine: EngineGraph) -> Any:
        self._runtime = self._trt.Runtime(self._logger)
        if engine.manifest.settings.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such an engine brings its own runtime
        plan = self._runtime.deserialize_cuda_engine(engine.engine_path.read_bytes())
        if plan is None:
            raise EngineError(
                f"{engine.engine_path}: cannot be loaded ({self._log.reason}); build the engine "
                'again with "speechquant build"'
            )
        return plan

    def _tensors(self, is_input: bool) -> dict[str, np.dtype[Any]]:
        plan, wanted = self._plan, self._trt.TensorIOMode.INPUT
        names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
        return {
            name: np.dtype(_NUMPY_TYPES[plan.get_tensor_dtype(name).name])
            for name in names
            if (plan.get_tensor_mode(name) == wanted) == is_input
        }

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Make this the GPU of the calling thread; the driver's errors become EngineErrors."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise _refused(error) from error
        finally:
            self._driver.Context.pop()

    def new_buffer(self, size: int) -> Buffer:
        """Return memory of `size` bytes; raises EngineError where there is not as much."""
        try:
            return Buffer(self._driver, self._stream, size)
        except self._driver.Error as error:
            raise _refused(error) from error

    def new_execution(self, *, repeats: bool = True) -> Execution:
        """Return one more execution of the network; `repeats` says that its shapes often do."""
        return Execution(self._new_context(repeats), self._stream.handle, self._log)

    def _new_scratch(self) -> tuple[Any, int]:
        name = "device_memory_size_v2"  # since 10.1
        size = getattr(self._plan, name if hasattr(self._plan, name) else name.removesuffix("_v2"))
        return self._driver.mem_alloc(max(size, 1)), size

    def _new_context(self, repeats: bool) -> Any:
        if self._scratch is None:
            config = self._plan.create_runtime_config()
            if repeats:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            else:
                # Otherwise it would compile kernels, and capture a graph, for shapes seen once.
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
                config.dynamic_shapes_kernel_specialization_strategy = (
                    self._trt.DynamicShapesKernelSpecializationStrategy.NONE
                )
            return self._plan.create_execution_context(config)
        # One memory for all: they run one after the other, on one stream.
        memory, size = self._scratch
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)  # since 10
        if strategies is None:
            context = self._plan.create_execution_context_without_device_memory()
        else:
            context = self._plan.create_execution_context(strategies.USER_MANAGED)
        if hasattr(context, "set_device_memory"):  # since 10.1
            context.set_device_memory(int(memory), size)
        else:
            context.device_memory = int(memory)
        return context

    def start_clock(self) -> None:
        """Queue the start of the time that `finish` returns."""
        self._clock[0].record(self._stream)

    def stop_clock(self) -> None:
        """Queue its end."""
        self._clock[1].record(self._stream)

    def wait(self) -> None:
        """Wait for all that is queued."""
        self._stream.synchronize()

    def finish(self) -> float:
        """Wait for all that is queued; return the milliseconds between start and end."""
        self.wait()
        return float(self._clock[1].time_since(self._clock[0]))

    def close(self) -> None:
        """Give everything back."""
        with self.activated():
            if self._scratch is not None:
                self._scratch[0].free()
            del self._plan, self._runtime, self._clock, self._stream
