"""Three engines on one GPU: that their values stay there, and that they are what the CPU computes.

The GPU is a stand-in whose networks are the bundle's own graphs, run by ONNX Runtime on the bytes
that lie at the addresses it is given.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpus import require_gpu
from numpy.typing import NDArray
from quantized import whisper_w8a8

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import (
    Engine,
    EngineGraph,
    EngineManifest,
    Limits,
)
from speechquant.core.errors import EngineError
from speechquant.core.seq2seq import GRAPHS
from speechquant.engines import BuildOptions, DecodingOptions, build_engine, open_recognizer
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.session import open_decoder_session
from speechquant.engines.tensorrt import bound_session as values_module
from speechquant.engines.tensorrt.bound_session import DeviceMemory, TensorRtValues, open_together
from speechquant.engines.tensorrt.device import TensorRtDevice
from speechquant.engines.whisper.recognizer import WhisperRecognizer

HALF, SINGLE = np.dtype("f2"), np.dtype("f4")
PROMPTS = np.array([[301, 302, 306], [301, 303, 306], [301, 304, 306]])


class FakeGpu:
    """What is queued is done at `wait`; memory that is freed, and memory that is new, is garbage."""

    def __init__(self, bundle: Bundle, cache: np.dtype[Any], token: np.dtype[Any]) -> None:
        self.bundle, self.cache, self.token = bundle, cache, token
        self.graphs = open_decoder_session(bundle, provider="cpu", threads=1).graphs
        self.memory: dict[int, bytearray] = {}
        self.queue: list[Callable[[], None]] = []
        self.buffers: list[FakeBuffer] = []
        self.copied: list[tuple[str, int]] = []
        self.next_address = 4096
        self.user: int | None = None
        self.contexts = 0
        self.devices: list[FakeDevice] = []
        self.placed = 0

    def device(self, engine: Any, beside: FakeDevice | None) -> FakeDevice:
        assert (beside is None) == (not self.devices)
        self.devices.append(FakeDevice(self, engine))
        return self.devices[-1]

    def check(self) -> None:
        assert self.user == threading.get_ident()

    def copies(self) -> list[tuple[str, int]]:
        found, self.copied = self.copied, []
        return found


class SmallDriver:
    """As much of pycuda's driver as memory asks of it; it has a mebibyte."""

    class Error(Exception):
        pass

    Context = SimpleNamespace(pop=lambda: None)

    def __init__(self) -> None:
        self.held = 0

    def mem_alloc(self, size: int) -> Any:
        if self.held + size > 1 << 20:
            raise self.Error("cuMemAlloc failed: out of memory")
        self.held += size
        return SmallMemory(self, size)


class SmallMemory:
    def __init__(self, driver: SmallDriver, size: int) -> None:
        self.driver, self.size = driver, size

    def __int__(self) -> int:
        return 4096

    def free(self) -> None:
        self.driver.held -= self.size


def test_memory_that_nobody_holds_is_given_back_where_the_gpu_is_full() -> None:
    device = object.__new__(TensorRtDevice)  # a real one wants a GPU and an engine
    driver = SmallDriver()
    device._driver, device._stream = driver, None  # type: ignore[assignment]
    device._context = SimpleNamespace(push=lambda: None)
    memory = DeviceMemory(device)
    with memory.in_use():
        kept = memory.new_value((1 << 18,), np.dtype("u1"))
        memory.new_value((1 << 19,), np.dtype("u1"))
    gc.collect()
    with memory.in_use():
        kept = memory.new_value((1 << 19,), np.dtype("u1")), kept
        assert driver.held == 3 << 18
        memory.new_value((1 << 17,), np.dtype("u1"))
    gc.collect()
    with memory.in_use():
        memory.new_value((1 << 18,), np.dtype("u1"))
        assert driver.held == 1 << 20
        with pytest.raises(EngineError, match=r"the GPU refuses \(cuMemAlloc failed: out of"):
            memory.new_value((1 << 20,), np.dtype("u1"))


class FakeDevice:
    def __init__(self, gpu: FakeGpu, engine: Any) -> None:
        self.gpu, self.name, self.is_closed = gpu, engine.name, False
        spec = gpu.bundle.spec.graphs[engine.name]
        self.specs = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        self.inputs = {tensor.name: self.dtype_of(tensor) for tensor in spec.inputs}
        self.outputs = {tensor.name: self.dtype_of(tensor) for tensor in spec.outputs}

    def dtype_of(self, tensor: Any) -> np.dtype[Any]:
        if tensor.name == "tokens":
            return self.gpu.token
        is_cache = tensor.name.removeprefix("new_").startswith(("self_", "cross_"))
        return self.gpu.cache if is_cache else SINGLE

    @contextmanager
    def activated(self) -> Iterator[None]:
        assert self.gpu.user is None, "two threads at once"
        assert not self.is_closed
        self.gpu.user = threading.get_ident()
        try:
            yield
        finally:
            self.gpu.user = None

    def new_buffer(self, size: int) -> FakeBuffer:
        self.gpu.check()
        self.gpu.buffers.append(FakeBuffer(self.gpu, size))
        return self.gpu.buffers[-1]

    def new_execution(self, *, repeats: bool = True) -> FakeExecution:
        self.gpu.check()
        self.gpu.contexts += 1
        return FakeExecution(self)

    def wait(self) -> None:
        self.gpu.check()
        queued, self.gpu.queue = self.gpu.queue, []
        for work in queued:
            work()

    def close(self) -> None:
        self.is_closed = True


class FakeBuffer:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        assert size & (size - 1) == 0, "a power of two"
        self.gpu, self.size, self.address = gpu, size, gpu.next_address
        gpu.next_address += size + 4096
        self.host = np.full(size, 255, np.uint8)
        gpu.memory[self.address] = bytearray(b"\xee" * size)

    def upload(self, size: int) -> None:
        self.gpu.copied.append(("up", size))

        def work() -> None:
            self.gpu.memory[self.address][:size] = self.host[:size].tobytes()

        self.gpu.queue.append(work)

    def download(self, size: int) -> None:
        self.gpu.copied.append(("down", size))

        def work() -> None:
            self.host[:size] = np.frombuffer(self.gpu.memory[self.address], np.uint8, size)

        self.gpu.queue.append(work)

    def free(self) -> None:
        self.gpu.check()
        del self.gpu.memory[self.address]


class FakeExecution:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.gpu = device, device.gpu
        self.places: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def place(self, name: str, address: int) -> None:
        self.gpu.check()
        self.gpu.placed += 1
        self.places[name] = address

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def shape_of(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for given, shape in self.shapes.items():
            for dim, size in zip(self.device.specs[given].dims, shape, strict=True):
                if isinstance(dim, str):
                    assert sizes.setdefault(dim, size) == size
        sizes["positions"] = sizes.get("positions", sizes.get("frames", 0) // 2)
        sizes["past + 1"] = sizes.get("past", 0) + 1
        return tuple(
            sizes[dim] if isinstance(dim, str) else dim for dim in self.device.specs[name].dims
        )

    def enqueue(self) -> None:
        self.gpu.check()
        places, shapes = dict(self.places), dict(self.shapes)
        results = {name: self.shape_of(name) for name in self.device.outputs}
        written = [places[name] for name in results]
        assert len({*written, *(places[name] for name in shapes)}) == len(places), "overlapping"

        def work() -> None:
            feeds = {name: self.read(name, places[name], shape) for name, shape in shapes.items()}
            for name, value in self.gpu.graphs[self.device.name].run(feeds).items():
                assert value.shape == results[name]
                content = value.astype(self.device.outputs[name]).tobytes()
                self.gpu.memory[places[name]][: len(content)] = content

        self.gpu.queue.append(work)

    def read(self, name: str, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = self.device.inputs[name]
        values = np.frombuffer(self.gpu.memory[address], dtype, int(np.prod(shape))).reshape(shape)
        return values.astype(self.device.specs[name].dtype)

    def free(self) -> None:
        self.gpu.check()
        self.gpu.contexts -= 1


def engine_of(bundle: Bundle, most: int = 4) -> Engine:
    frames, tokens = bundle.spec.features.chunk_frames, bundle.spec.generation.max_tokens
    limits = {
        "encoder": {"batch": Limits(1, 1, 1), "frames": Limits(frames, frames, frames)},
        "decoder_prefill": {"batch": Limits(1, 1, most), "prompt": Limits(1, 4, tokens)},
        "decoder_step": {"batch": Limits(1, 1, most), "past": Limits(1, 4, tokens - 1)},
    }
    manifests = {
        name: EngineManifest(
            "tensorrt-rtx", f"{name}.engine", "sm86", {"tensorrt-rtx": "1.7"}, {}, "fp16",
            limits=limits[name],
        )
        for name in GRAPHS
    }  # fmt: skip
    return Engine(bundle.folder, bundle.spec, {}, manifests)


def opened(gpu: FakeGpu, most: int = 4) -> dict[str, TensorRtValues]:
    engine = engine_of(gpu.bundle, most)
    return open_together(engine.graphs, gpu.device)  # type: ignore[arg-type]


@pytest.fixture
def gpu(whisper_bundle: Bundle) -> FakeGpu:
    return FakeGpu(whisper_bundle, SINGLE, np.dtype("i8"))


def features_of(bundle: Bundle, clips: int = 3) -> NDArray[np.float32]:
    spec = bundle.spec.features
    shape = (clips, spec.mel_bins, spec.chunk_frames)
    return np.random.default_rng(5).normal(0, 0.7, shape).astype(np.float32)


def outputs_of(session: Seq2SeqSession, bundle: Bundle) -> list[NDArray[np.float32]]:
    """What the encoder, the prompt and six steps give, two clips of three after the third."""
    hidden = session.encode(features_of(bundle))
    run = session.start(hidden, PROMPTS)
    before = [run.advance([60 + step, 70, 80]) for step in range(3)]
    run.keep([2, 0])
    after = [run.advance([90, 60 + step]) for step in range(3)]
    return [hidden, run.prompt_logits, *before, *after]


@pytest.mark.parametrize(
    ("cache", "token", "tolerance"),
    # Caches in float16 have eleven bits.
    [(SINGLE, np.dtype("i8"), 0), (SINGLE, np.dtype("i4"), 0), (HALF, np.dtype("i8"), 5e-3)],
)
def test_values_are_those_of_the_cpu(
    whisper_bundle: Bundle, cache: np.dtype[Any], token: np.dtype[Any], tolerance: float
) -> None:
    gpu = FakeGpu(whisper_bundle, cache, token)
    with open_decoder_session(whisper_bundle, provider="cpu", threads=1) as session:
        expected = outputs_of(session, whisper_bundle)
    with Seq2SeqSession(opened(gpu)) as session:
        assert session.provider == "tensorrt-rtx"
        found = outputs_of(session, whisper_bundle)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
    assert not gpu.memory and gpu.contexts == 0
    assert all(device.is_closed for device in gpu.devices)


def test_only_tokens_and_logits_are_copied_and_memory_is_used_again(gpu: FakeGpu) -> None:
    spec = gpu.bundle.spec
    with Seq2SeqSession(opened(gpu)) as session:
        hidden = session.encode(features_of(gpu.bundle, 1))
        run = session.start(hidden, PROMPTS[:1])
        gpu.copies()
        logits = run.advance([50])
        assert gpu.copies() == [("up", 8), ("down", logits.nbytes)]
        counts, placed = [], []
        for step in range(14):
            before = gpu.placed
            run.advance([51 + step])
            counts.append(len(gpu.buffers))
            placed.append(gpu.placed - before)
        assert set(gpu.copies()) == {("up", 8), ("down", logits.nbytes)}
        # A token takes 128 bytes of a cache, so memory doubles beyond 8 and 16 tokens; of each size
        # two sets take turns. After the first of these steps, which has 5 tokens, one set is there.
        assert counts[-1] - counts[0] == (1 + 2 + 2) * 2 * spec.decoder_layers
        # The keys and values of the encoder stay where they are.
        assert max(placed) <= 2 + 2 * 2 * spec.decoder_layers
        most = len(gpu.buffers)
        del run
        gc.collect()
        again = session.start(hidden, PROMPTS[:1])
        again.advance([50])
        assert len(gpu.buffers) == most


def test_runs_in_two_threads_get_what_each_gets_alone(gpu: FakeGpu) -> None:
    with Seq2SeqSession(opened(gpu)) as session:
        hidden = session.encode(features_of(gpu.bundle))

        def decoded(clip: int) -> list[NDArray[np.float32]]:
            run = session.start(hidden[clip : clip + 1], PROMPTS[clip : clip + 1])
            return [run.prompt_logits, *(run.advance([50 + step]) for step in range(6))]

        alone = [decoded(clip) for clip in range(3)]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(decoded, [0, 1, 2] * 4))
    for index, run in enumerate(together):
        for mine, theirs in zip(run, alone[index % 3], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_texts_are_those_of_the_cpu_in_batches_that_the_engine_takes(gpu: FakeGpu) -> None:
    rng, options = np.random.default_rng(3), DecodingOptions(temperatures=(0.0,))
    waves = [0.1 * rng.standard_normal(9_000 + 4_000 * n).astype(np.float32) for n in range(5)]
    with open_recognizer(gpu.bundle, provider="cpu", threads=1, decoding=options) as recognizer:
        expected = recognizer.transcribe(waves)
    session = Seq2SeqSession(opened(gpu, most=2))
    with WhisperRecognizer(engine_of(gpu.bundle, most=2), session, options) as recognizer:
        assert recognizer.transcribe(waves) == expected


def test_what_an_engine_does_not_take_is_refused(gpu: FakeGpu) -> None:
    graphs = opened(gpu, most=2)
    hidden = np.zeros((3, gpu.bundle.spec.features.chunk_frames // 2, 32), np.float32)
    prefill = graphs["decoder_prefill"]
    with Seq2SeqSession(graphs):
        for feeds, message in (
            ({"tokens": PROMPTS, "hidden": hidden}, "batch is 3, and it takes 1 to 2"),
            ({"tokens": PROMPTS[:1, :0], "hidden": hidden[:1]}, "prompt is 0, and it takes 1 to"),
            (
                {"tokens": PROMPTS[:1], "hidden": hidden[:2]},
                r"hidden is \(2, 100, 32\), which does",
            ),
            ({"tokens": PROMPTS[:1]}, "is not given its input hidden"),
            ({"tokens": PROMPTS[:1], "speech": hidden}, "has no input speech, but tokens, hidden"),
            ({"tokens": PROMPTS[:1] + 0.5, "hidden": hidden[:1]}, "tokens is float64"),
        ):
            with pytest.raises(EngineError, match=f"decoder_prefill.engine: {message}"):
                prefill.run(feeds)


def test_a_closed_session_says_so_also_to_a_run_that_is_under_way(gpu: FakeGpu) -> None:
    session = Seq2SeqSession(opened(gpu))
    run = session.start(session.encode(features_of(gpu.bundle, 1)), PROMPTS[:1])
    with session, session:
        pass
    for use in (lambda: session.encode(features_of(gpu.bundle, 1)), lambda: run.advance([5])):
        with pytest.raises(EngineError, match="this session is closed; open another"):
            use()


def test_where_the_last_engine_cannot_be_loaded_the_others_are_closed(gpu: FakeGpu) -> None:
    engine = engine_of(gpu.bundle)

    def refuse(part: EngineGraph, beside: Any) -> Any:
        if part.name == "decoder_step":
            raise EngineError("cannot be loaded")
        return gpu.device(part, beside)

    with pytest.raises(EngineError, match="cannot be loaded"):
        open_together(engine.graphs, refuse)
    assert [device.is_closed for device in gpu.devices] == [True, True]


def test_an_engine_is_opened_by_its_recognizer(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        values_module, "open_together", lambda parts: open_together(parts, gpu.device)
    )
    with open_recognizer(engine_of(gpu.bundle)) as recognizer:
        assert recognizer.provider == "tensorrt-rtx"
    assert [device.name for device in gpu.devices] == list(GRAPHS)


@pytest.mark.gpu
def test_logits_on_a_gpu_are_those_of_onnx_runtime(whisper_bundle: Bundle, tmp_path: Path) -> None:
    backend = require_gpu()
    bundle = whisper_w8a8(whisper_bundle, tmp_path / "w8a8")
    with open_decoder_session(bundle, provider="cpu") as session:
        expected = outputs_of(session, bundle)
    for float_type, share in (("fp32", 0.02), ("fp16", 0.1)):
        engine = build_engine(
            bundle, tmp_path / float_type, BuildOptions(backend, "current", float_type=float_type)
        )
        with open_decoder_session(engine) as session:
            assert isinstance(session.graphs["encoder"], TensorRtValues)
            found = outputs_of(session, bundle)
        for mine, theirs in zip(found, expected, strict=True):
            # Sums in another order tip single values over a half, which moves a whole step.
            assert np.abs(mine - theirs).mean() < share * theirs.std()
