from __future__ import annotations

import importlib
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, create_autospec

import numpy as np
import pytest
from gpus import LIBRARIES, installed_backend, require_gpu
from numpy.typing import NDArray

from speechquant.core.ctc import MODEL, CtcDecoding, CtcSpec
from speechquant.core.engine_folders import Engine, EngineManifest, Limits
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.core.specs import TensorSpec
from speechquant.engines.tensorrt import device as tensorrt_device
from speechquant.engines.tensorrt import session as tensorrt_session
from speechquant.engines.tensorrt.device import TensorRtDevice
from speechquant.engines.tensorrt.session import TensorRtSession

HOP = 4
SPEC = CtcSpec(
    architecture="sums",
    task="ctc",
    precision="w8a8",
    sample_rate_hz=100,
    normalize_waveform=False,
    padding_exact=True,
    conv_kernels=(HOP,),
    conv_strides=(HOP,),
    attention_heads=1,
    inputs=(
        TensorSpec("input_values", "float32", ("batch", "samples")),
        TensorSpec("input_lengths", "int64", ("batch",)),
    ),
    outputs=(TensorSpec("logits", "float32", ("batch", "frames", 2)),),
    layers={},
    decoding=CtcDecoding(0, None),
)
MANIFEST = EngineManifest(
    backend="tensorrt-rtx",
    engine_file="model.engine",
    target="sm86",
    toolchain={"tensorrt-rtx": "1.7.1.116"},
    source={},
    float_type="fp16",
    limits={"samples": Limits(8, 100, 400), "batch": Limits(1, 1, 3)},
)
ENGINE = Engine(Path("an-engine"), SPEC, {}, {MODEL: MANIFEST})
Arrays = dict[str, NDArray[Any]]


def network(feeds: Arrays) -> NDArray[np.float32]:
    """The sum of each frame's samples, and how long the clip is."""
    values, lengths = feeds["input_values"], feeds["input_lengths"]
    frames = values.shape[1] // HOP
    sums = values[:, : frames * HOP].reshape(len(values), frames, HOP).sum(axis=2)
    return np.stack([sums, np.broadcast_to(lengths[:, None], sums.shape)], axis=2).astype("f4")


class FakeGpu:
    """A GPU in memory: what is queued is done when `finish` is called, freed memory is gone."""

    def __init__(self, captures_graphs: bool = True, can_capture: bool = True) -> None:
        self.inputs = {"input_values": np.dtype("f4"), "input_lengths": np.dtype("i4")}
        self.outputs = {"logits": np.dtype("f4")}
        self.captures_graphs, self.can_capture = captures_graphs, can_capture
        self.memory: dict[int, bytearray] = {}
        self.queue: list[Callable[[], None]] = []
        self.next_address = 4096
        self.buffers: list[FakeBuffer] = []
        self.executions: list[FakeExecution] = []
        self.launches: list[str] = []
        self.user: int | None = None
        self.is_closed = False

    @contextmanager
    def activated(self) -> Iterator[None]:
        assert self.user is None, "two threads at once"
        self.user = threading.get_ident()
        try:
            yield
        finally:
            self.user = None

    def check(self) -> None:
        assert self.user == threading.get_ident()
        assert not self.is_closed

    def new_buffer(self, size: int) -> FakeBuffer:
        self.check()
        self.buffers.append(FakeBuffer(self, size))
        return self.buffers[-1]

    def new_execution(self, *, repeats: bool = True) -> FakeExecution:
        self.check()
        self.executions.append(FakeExecution(self))
        return self.executions[-1]

    def start_clock(self) -> None:
        self.check()
        self.queue.append(lambda: self.launches.append("start"))

    def stop_clock(self) -> None:
        self.queue.append(lambda: self.launches.append("stop"))

    def finish(self) -> float:
        self.check()
        queued, self.queue = self.queue, []
        for work in queued:
            work()
        return 0.5

    def close(self) -> None:
        assert not self.memory
        self.is_closed = True

    @property
    def works(self) -> list[str]:
        """What ran between the clock's start and stop, which must hold nothing else."""
        assert self.launches[::3] == ["start"] * (len(self.launches) // 3)
        assert self.launches[2::3] == ["stop"] * (len(self.launches) // 3)
        return self.launches[1::3]


class FakeBuffer:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        self.gpu, self.size, self.address = gpu, size, gpu.next_address
        gpu.next_address += size + 4096
        self.host = np.full(size, 255, np.uint8)
        gpu.memory[self.address] = bytearray(b"\xee" * size)

    def upload(self, size: int) -> None:
        def work() -> None:
            self.gpu.memory[self.address][:size] = self.host[:size].tobytes()

        self.gpu.queue.append(work)

    def download(self, size: int) -> None:
        def work() -> None:
            self.host[:size] = np.frombuffer(self.gpu.memory[self.address], np.uint8, size)

        self.gpu.queue.append(work)

    def free(self) -> None:
        self.gpu.check()
        del self.gpu.memory[self.address]
        self.host = np.zeros(0, np.uint8)


class FakeExecution:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.is_freed, self.was_queued = gpu, False, False
        self.places: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.graph: tuple[dict[str, int], dict[str, tuple[int, ...]]] | None = None

    def place(self, name: str, address: int) -> None:
        assert self.graph is None, "changing what a graph was recorded from is undefined"
        self.places[name] = address

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert self.graph is None, "changing what a graph was recorded from is undefined"
        self.shapes[name] = shape

    def shape_of(self, name: str) -> tuple[int, ...]:
        batch, samples = self.shapes["input_values"]
        return {"logits": (batch, samples // HOP, 2)}[name]

    def enqueue(self) -> None:
        self.gpu.check()
        assert not self.is_freed
        self.was_queued = True
        places, shapes = self.graph or (dict(self.places), dict(self.shapes))
        kind = "graph" if self.graph else "kernels"
        self.gpu.queue.append(lambda: self._work(kind, places, shapes))

    def _work(self, kind: str, places: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.gpu.launches.append(kind)
        feeds = {
            name: np.frombuffer(
                self.gpu.memory[places[name]], dtype, int(np.prod(shapes[name]))
            ).reshape(shapes[name])
            for name, dtype in self.gpu.inputs.items()
        }
        time.sleep(0.0005)
        result = network(feeds).tobytes()
        self.gpu.memory[places["logits"]][: len(result)] = result

    def capture(self) -> bool:
        assert self.was_queued, "TensorRT wants a run before it is recorded"
        assert not self.gpu.queue
        if self.gpu.can_capture:
            self.graph = dict(self.places), dict(self.shapes)
        return self.gpu.can_capture

    def free(self) -> None:
        assert not self.is_freed
        self.is_freed = True


def clips(batch: int, samples: int, seed: int = 0) -> Arrays:
    values = np.random.default_rng(seed).standard_normal((batch, samples)).astype(np.float32)
    return {"input_values": values, "input_lengths": np.full(batch, samples - seed % 3)}


def session_on(gpu: FakeGpu, engine: Engine = ENGINE) -> TensorRtSession:
    return TensorRtSession(engine, gpu)  # type: ignore[arg-type]


def check(session: TensorRtSession, feeds: Arrays) -> None:
    np.testing.assert_array_equal(session.run(feeds)["logits"], network(feeds))


def test_outputs_are_the_networks_and_the_callers_own() -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session:
        first = session.run(clips(2, 40, seed=1))
        kept = first["logits"].copy()
        check(session, clips(2, 40, seed=2))
        np.testing.assert_array_equal(first["logits"], kept)
        assert session.last_milliseconds == 0.5
    assert gpu.is_closed
    assert all(execution.is_freed for execution in gpu.executions)


def test_buffers_are_reused_and_grow_to_powers_of_two() -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session:
        check(session, clips(1, 100))  # 400 bytes in, 4 of length, 25 frames of 2 floats out
        assert sorted(len(buffer.host) for buffer in gpu.buffers) == [4, 256, 512]
        for samples in (90, 128, 8):  # 128 samples are 512 bytes in and 256 out
            check(session, clips(1, samples))
        assert len(gpu.buffers) == 3
        check(session, clips(1, 129))
        assert [len(buffer.host) for buffer in gpu.buffers[3:]] == [1024]
        assert len(gpu.memory) == 3


def test_repeated_shapes_become_graphs() -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session:
        check(session, clips(2, 128))  # so that no buffer grows later
        for seed in range(4):
            check(session, clips(1, 80, seed))
        check(session, clips(1, 60))
        check(session, clips(1, 80, seed=9))
    assert gpu.works == ["kernels"] * 3 + ["graph"] * 2 + ["kernels", "graph"]
    assert len(gpu.executions) == 2


def test_a_buffer_that_grows_takes_its_graphs_with_it() -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session:
        for seed in range(3):
            check(session, clips(1, 80, seed))
        check(session, clips(3, 400))
        for seed in range(3):
            check(session, clips(1, 80, seed))
    # The shape is known to repeat, so it is recorded again at once.
    assert gpu.works == ["kernels", "kernels", "graph", "kernels", "kernels", "graph", "graph"]


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_session, "_MOST_GRAPHS", 2)
    gpu = FakeGpu()
    with session_on(gpu) as session:
        check(session, clips(3, 400))
        for samples in (40, 60, 40, 60, 40, 80, 80, 40, 60):
            check(session, clips(1, samples))
        # 80 took the place of 60, which was not asked for as lately as 40.
        assert gpu.works[-2:] == ["graph", "kernels"]
        assert len(gpu.executions) == 4  # 60 has to come again before it is recorded again
        alive = [execution for execution in gpu.executions if not execution.is_freed]
        assert len(alive) == 3


def test_the_number_of_shapes_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_session, "_MOST_SHAPES_REMEMBERED", 2)
    gpu = FakeGpu()
    with session_on(gpu) as session:
        check(session, clips(3, 400))
        for samples in (40, 60, 80, 40, 40, 40):
            check(session, clips(1, samples))
    assert gpu.works == ["kernels"] * 6 + ["graph"]


def test_an_engine_that_cannot_be_recorded_runs_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu = FakeGpu(can_capture=False)
    with session_on(gpu) as session:
        for seed in range(4):
            check(session, clips(1, 80, seed))
        check(session, clips(1, 40))
        check(session, clips(1, 40))
    assert gpu.works == ["kernels"] * 6
    assert len(gpu.executions) == 2
    assert caplog.text.count("has no CUDA graphs") == 1


def test_a_library_with_graphs_of_its_own_is_left_to_it() -> None:
    gpu = FakeGpu(captures_graphs=False)
    with session_on(gpu) as session:
        for seed in range(3):
            check(session, clips(1, 80, seed))
    assert len(gpu.executions) == 1


@pytest.mark.parametrize(("batch", "parts"), [(3, 1), (4, 2), (7, 3)])
def test_a_batch_above_the_limit_is_split_and_joined(batch: int, parts: int) -> None:
    gpu = FakeGpu()
    feeds = clips(batch, 40)
    feeds["input_lengths"] = np.arange(batch) + 8
    with session_on(gpu) as session:
        check(session, feeds)
        assert session.last_milliseconds == 0.5 * parts
    assert len(gpu.works) == parts


def test_an_engine_without_limits_takes_any_batch() -> None:
    gpu = FakeGpu()
    engine = replace(ENGINE, manifests={MODEL: replace(MANIFEST, limits={})})
    with session_on(gpu, engine) as session:
        check(session, clips(50, 4))
        with pytest.raises(EngineError, match="a batch of 0"):
            session.run(clips(0, 40))
    assert gpu.works == ["kernels"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (clips(1, 401), r"401 samples \(4\.01 s\), .* takes 8 samples \(0\.08 s\) to 400 samples \(4\.00 s\)"),
        (clips(1, 7), r"a clip of 7 samples \(0\.07 s\)"),
        (clips(0, 40), "a batch of 0 does not divide into batches of 1 to 3"),
        ({"input_values": np.zeros((1, 40), "f4")}, "input_lengths is not in both"),
        ({**clips(1, 40), "mask": np.zeros(1)}, "mask is not in both"),
        ({**clips(1, 40), "input_lengths": np.ones(1, "f4")}, "input_lengths is float32, .* int32"),
        ({**clips(1, 40), "input_lengths": np.ones(2, "i8")}, r"input_lengths is \(2,\), .*\(batch\)"),
        ({**clips(1, 40), "input_values": np.ones(40, "f4")}, r"\(40,\), .*\(batch, samples\)"),
    ],
)  # fmt: skip
def test_what_the_engine_cannot_take_is_refused(feeds: Arrays, message: str) -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session:
        with pytest.raises(EngineError, match=message) as caught:
            session.run(feeds)
        assert str(caught.value).startswith("an-engine: ")
        assert "\n" not in str(caught.value)
        assert not gpu.launches
        check(session, clips(1, 40))


def test_a_batch_that_cannot_be_divided() -> None:
    engine = replace(
        ENGINE,
        manifests={MODEL: replace(MANIFEST, limits={**MANIFEST.limits, "batch": Limits(4, 4, 4)})},
    )
    with session_on(FakeGpu(), engine) as session:
        check(session, clips(8, 40))
        with pytest.raises(
            EngineError, match="a batch of 6 does not divide into batches of 4 to 4"
        ):
            session.run(clips(6, 40))


def test_a_closed_session_says_so() -> None:
    session = session_on(FakeGpu())
    with session:
        pass
    with session:  # closing twice does nothing
        pass
    with pytest.raises(EngineError, match="this session is closed"):
        session.run(clips(1, 40))


def test_two_threads_get_what_each_asked_for() -> None:
    gpu = FakeGpu()
    with session_on(gpu) as session, ThreadPoolExecutor(4) as pool:
        asked = [clips(1 + n % 5, 8 + 4 * (n % 7) + 40 * (n % 3), seed=n) for n in range(200)]
        heard = list(pool.map(lambda feeds: session.run(feeds)["logits"], asked))
    for feeds, logits in zip(asked, heard, strict=True):
        np.testing.assert_array_equal(logits, network(feeds))
    assert {"kernels", "graph"} == set(gpu.works)


# The real library's classes, without a GPU: what is called on them must be there.


class FakePlan:
    """What `TensorRtDevice` needs of the library, with the methods that its classes really have."""

    def __init__(self, trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contexts: list[MagicMock] = []
        self.plan = create_autospec(trt.ICudaEngine, instance=True)
        self.plan.num_io_tensors = 2
        self.plan.get_tensor_name.side_effect = ["input_lengths", "logits"].__getitem__
        modes = {"input_lengths": trt.TensorIOMode.INPUT, "logits": trt.TensorIOMode.OUTPUT}
        self.plan.get_tensor_mode.side_effect = modes.__getitem__
        types_of = {"input_lengths": trt.DataType.INT32, "logits": trt.DataType.HALF}
        self.plan.get_tensor_dtype.side_effect = types_of.__getitem__
        for name in ("device_memory_size", "device_memory_size_v2"):
            if hasattr(trt.ICudaEngine, name):
                setattr(self.plan, name, 1000)
        for name in dir(trt.ICudaEngine):
            if name.startswith("create_execution_context"):
                getattr(self.plan, name).side_effect = lambda *_: self.new_context(trt)
        self.runtime = create_autospec(trt.Runtime, instance=True)
        self.runtime.deserialize_cuda_engine.return_value = self.plan
        monkeypatch.setattr(trt, "Runtime", lambda logger: self.runtime)

    def new_context(self, trt: Any) -> MagicMock:
        self.contexts.append(create_autospec(trt.IExecutionContext, instance=True))
        self.contexts[-1].get_tensor_shape.return_value = (1, 5)
        return self.contexts[-1]


class FakePycuda(types.ModuleType):
    """The functions of pycuda.driver that are used, on the memory of this process."""

    class Error(Exception): ...

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.Context = MagicMock(spec=["pop"])
        self.stream = MagicMock(spec=["synchronize", "handle"], handle=77)
        self.context = MagicMock(spec=["push"])
        self.freed: list[str] = []

    def init(self) -> None: ...

    def Device(self, index: int) -> Any:  # noqa: N802 - pycuda's name
        return types.SimpleNamespace(retain_primary_context=lambda: self.context)

    def Stream(self) -> Any:  # noqa: N802
        return self.stream

    def Event(self) -> Any:  # noqa: N802
        event = MagicMock(spec=["record", "time_since"])
        event.time_since.return_value = 1.25
        return event

    def mem_alloc(self, size: int) -> Any:
        memory = MagicMock(spec=["free", "__int__"])
        memory.__int__.return_value = 4096 + size
        return memory


@pytest.fixture
def device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[TensorRtDevice, FakePlan, FakePycuda, Any]:
    backend = installed_backend()
    trt, driver = importlib.import_module(LIBRARIES[backend]), FakePycuda()
    package = types.ModuleType("pycuda")
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(tensorrt_device, "current_capability", lambda: (8, 6))
    manifest = replace(MANIFEST, backend=backend, toolchain={backend: trt.__version__})
    (tmp_path / "model.engine").write_bytes(b"a plan")
    plan = FakePlan(trt, monkeypatch)
    return (
        TensorRtDevice(Engine(tmp_path, SPEC, {}, {MODEL: manifest}).only_graph),
        plan,
        driver,
        trt,
    )


def test_the_device_asks_the_library_for_what_it_has(
    device: tuple[TensorRtDevice, FakePlan, FakePycuda, Any],
) -> None:
    on_gpu, plan, driver, trt = device
    assert on_gpu.inputs == {"input_lengths": np.dtype("i4")}
    assert on_gpu.outputs == {"logits": np.dtype("f2")}
    plan.runtime.deserialize_cuda_engine.assert_called_once_with(b"a plan")
    with on_gpu.activated():
        first, second = on_gpu.new_execution(), on_gpu.new_execution()
        first.place("logits", 4096)
        first.set_shape("input_lengths", (1,))
        assert first.shape_of("logits") == (1, 5)
        on_gpu.start_clock()
        first.enqueue()
        on_gpu.stop_clock()
        assert on_gpu.finish() == 1.25
    used, other = plan.contexts
    used.set_tensor_address.assert_called_once_with("logits", 4096)
    used.set_input_shape.assert_called_once_with("input_lengths", (1,))
    used.execute_async_v3.assert_called_once_with(77)
    other.execute_async_v3.assert_not_called()
    if trt.__name__ == "tensorrt_rtx":
        config = plan.plan.create_runtime_config.return_value
        assert config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    elif not hasattr(used, "set_device_memory"):
        assert used.device_memory == other.device_memory == 4096 + 1000
    assert driver.context.push.call_count == driver.Context.pop.call_count
    first.free()
    second.free()
    on_gpu.close()


def test_what_the_library_refuses_is_an_engine_error(
    device: tuple[TensorRtDevice, FakePlan, FakePycuda, Any],
) -> None:
    on_gpu, plan, driver, _ = device
    execution = on_gpu.new_execution()
    context = plan.contexts[-1]
    context.set_input_shape.return_value = False
    context.get_tensor_shape.return_value = (1, -1)
    context.execute_async_v3.return_value = False
    on_gpu._log.write("ERROR", "out of\nrange")
    with pytest.raises(EngineError, match=r"take logits as \(9,\): out of range"):
        execution.set_shape("logits", (9,))
    with pytest.raises(EngineError, match="tell the shape of logits"):
        execution.shape_of("logits")
    with pytest.raises(EngineError, match="run the network"):
        execution.enqueue()
    with pytest.raises(EngineError, match=r"the GPU refuses \(out of memory\)"), on_gpu.activated():
        raise driver.Error("out of memory")
    assert driver.context.push.call_count == driver.Context.pop.call_count


def test_a_device_beside_another_queues_in_its_line(
    device: tuple[TensorRtDevice, FakePlan, FakePycuda, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu, _, driver, trt = device
    monkeypatch.setattr(driver, "Stream", lambda: MagicMock(spec=["synchronize"]))
    backend = installed_backend()
    manifest = replace(MANIFEST, backend=backend, toolchain={backend: trt.__version__})
    beside = TensorRtDevice(Engine(tmp_path, SPEC, {}, {MODEL: manifest}).only_graph, on_gpu)
    with beside.activated():
        beside.wait()
    driver.stream.synchronize.assert_called_once_with()


def test_memory_on_the_host_is_there_once_it_is_asked_for() -> None:
    driver = MagicMock(spec=["mem_alloc", "pagelocked_empty", "memcpy_dtoh_async"])
    driver.mem_alloc.return_value.__int__.return_value = 4096
    pinned = np.zeros(64, np.uint8)
    owner = MagicMock(spec=["free"])
    driver.pagelocked_empty.return_value = types.SimpleNamespace(
        base=owner, __getitem__=pinned.__getitem__
    )
    kept, copied = (tensorrt_device.Buffer(driver, "stream", 64) for _ in range(2))
    kept.free()
    driver.pagelocked_empty.assert_not_called()
    assert copied.host.base is owner
    copied.free()
    driver.pagelocked_empty.assert_called_once_with(64, np.uint8)
    owner.free.assert_called_once_with()
    assert driver.mem_alloc.return_value.free.call_count == 2


def test_a_plan_that_cannot_be_loaded(
    device: tuple[TensorRtDevice, FakePlan, FakePycuda, Any], tmp_path: Path
) -> None:
    _, plan, _, trt = device
    plan.runtime.deserialize_cuda_engine.return_value = None
    backend = installed_backend()
    manifest = replace(MANIFEST, backend=backend, toolchain={backend: trt.__version__})
    with pytest.raises(EngineError, match=r"model\.engine: cannot be loaded .*speechquant build"):
        TensorRtDevice(Engine(tmp_path, SPEC, {}, {MODEL: manifest}).only_graph)


def test_without_pycuda_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = installed_backend()
    monkeypatch.setattr(
        "speechquant.core.onnx_files.find_spec",
        lambda name: None if name == "pycuda" else find_spec(name),
    )
    engine = replace(ENGINE, manifests={MODEL: replace(MANIFEST, backend=backend)})
    with pytest.raises(MissingPackageError, match=r"pycuda: pip install 'speechquant\[gpu\]'"):
        TensorRtSession(engine)


def test_without_a_gpu_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = installed_backend()
    monkeypatch.setattr(tensorrt_device, "require_packages", lambda *_, **__: None)

    def no_driver(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("speechquant.engines.tensorrt.targets.ctypes.CDLL", no_driver)
    engine = replace(ENGINE, manifests={MODEL: replace(MANIFEST, backend=backend)})
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        TensorRtSession(engine)


class FakeCuda:
    """The driver's functions for graphs, as far as they are used; `failing` answers 1."""

    def __init__(self, failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in ("cuStreamEndCapture", "cuGraphInstantiateWithFlags"):
                handle = arguments[1 if name == "cuStreamEndCapture" else 0]
                handle._obj.value = None if name == self.failing else 4711
            return int(name == self.failing)

        return call


@pytest.mark.parametrize(
    ("failing", "calls"),
    [
        ("cuStreamBeginCapture_v2", []),
        ("cuStreamEndCapture", ["enqueue", "cuStreamEndCapture"]),
        (
            "cuGraphInstantiateWithFlags",
            ["enqueue", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy"],
        ),
    ],
)
def test_a_graph_that_cannot_be_recorded(
    failing: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(failing)
    monkeypatch.setattr(tensorrt_device.ctypes, "CDLL", lambda name: cuda)
    graph = tensorrt_device.CudaGraph(77)
    assert not graph.record(lambda: cuda.calls.append("enqueue") is None)
    graph.free()
    assert cuda.calls == ["cuStreamBeginCapture_v2", *calls]


def test_a_graph_is_recorded_launched_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda("")
    monkeypatch.setattr(tensorrt_device.ctypes, "CDLL", lambda name: cuda)
    graph = tensorrt_device.CudaGraph(77)
    assert graph.record(lambda: True)
    assert graph.launch()
    graph.free()
    assert cuda.calls[-3:] == ["cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"]
    assert not tensorrt_device.CudaGraph(77).record(lambda: False)


@pytest.mark.gpu
def test_logits_on_a_gpu_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    backend = require_gpu()
    from quantized import w8a8

    from speechquant.engines import open_session
    from speechquant.engines.build import build_engine
    from speechquant.engines.build_options import BuildOptions
    from speechquant.exporter import export
    from speechquant.zoo.models import TRAINED_MODELS

    float_bundle = export(str(TRAINED_MODELS / "hubert"), tmp_path / "fp32")
    bundle = w8a8(float_bundle, tmp_path / "w8a8")
    options = BuildOptions(
        backend,
        target="current",
        samples=Limits(4000, 16_000, 32_000),
        batch=Limits(1, 1, 2),
        float_type="fp32",
    )
    engine = build_engine(bundle, tmp_path / "engine", options)
    rng = np.random.default_rng(5)
    with TensorRtSession(engine) as session, open_session(bundle) as reference:
        for batch, samples in [(1, 16_000), (5, 8_000), (1, 16_000), (1, 16_000), (1, 32_000)]:
            feeds = {
                "input_values": rng.standard_normal((batch, samples)).astype(np.float32),
                "input_lengths": np.full(batch, samples),
            }
            got, wanted = session.run(feeds)["logits"], reference.run(feeds)["logits"]
            assert got.shape == wanted.shape
            # Sums in another order tip single values over a half, which moves a whole step.
            assert np.abs(got - wanted).mean() < 0.02 * wanted.std()
            assert session.last_milliseconds > 0
        with pytest.raises(EngineError, match=r"32001 samples \(2\.00 s\)"):
            session.run({"input_values": np.zeros((1, 32_001), "f4"), "input_lengths": [32_001]})
