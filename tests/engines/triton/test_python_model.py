"""The model as Triton calls it, with a stand-in for what Triton's Python backend brings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plans import MANIFEST, engine_of

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Limits
from speechquant.core.errors import AudioError, EngineError
from speechquant.engines import open_recognizer, open_session
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.triton.graph_session import TritonGraphSession
from speechquant.engines.triton.python_model import TritonPythonModel, waves_of
from speechquant.engines.triton.repository import TritonOptions, write_repository

Wave = NDArray[np.float32]
RATE_HZ = 16_000


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> NDArray[Any]:
        return self.array


class Response:
    def __init__(self, tensors: list[Tensor], error: Exception | None = None) -> None:
        self.tensors, self._error = tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return SimpleNamespace(message=lambda: str(self._error))


class FakeTriton(SimpleNamespace):
    """`graph` answers the requests of the model to another one."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.graph: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
        super().__init__(
            Tensor=Tensor,
            InferenceResponse=Response,
            TritonError=RuntimeError,
            InferenceRequest=self.request,
            PreferredMemory=lambda kind, device: (kind, device),
            TRITONSERVER_MEMORY_CPU="cpu",
            get_input_tensor_by_name=self.named,
            get_output_tensor_by_name=lambda response, name: self.named(response.tensors, name),
        )

    def named(self, tensors: list[Tensor], name: str) -> Tensor | None:
        return next((tensor for tensor in tensors if tensor.name == name), None)

    def request(self, **asked: Any) -> Any:
        self.asked.append(asked)

        def execute() -> Response:
            try:
                found = self.graph({one.name: one.array for one in asked["inputs"]})
            except ValueError as error:
                return Response([], error)
            return Response([Tensor(name, value) for name, value in found.items()])

        return SimpleNamespace(exec=execute)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTriton]:
    fake = FakeTriton()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)  # type: ignore[arg-type]
    yield fake


def opened(repository: Path, name: str, **parameters: str) -> TritonPythonModel:
    rows = {key: {"string_value": value} for key, value in parameters.items()}
    config = {"parameters": rows, "instance_group": [{"count": 2}]}
    model = TritonPythonModel()
    folder = str(repository / name)
    model.initialize(
        {"model_config": json.dumps(config), "model_repository": folder, "model_version": "1"}
    )
    return model


def request(waves: NDArray[Any], lengths: list[int] | None = None) -> list[Tensor]:
    tensors = [Tensor("AUDIO", waves)]
    return tensors + ([] if lengths is None else [Tensor("SAMPLES", np.array([lengths]).T)])


def texts(response: Response) -> list[str]:
    (tensor,) = response.tensors
    assert tensor.name == "TEXT" and tensor.array.shape[1] == 1
    return [row[0].decode() for row in tensor.array]


def clips(noise: Wave) -> list[Wave]:
    return [noise[:16_000], noise[:20_000], noise[5_000:13_000]]


@pytest.fixture
def expected(tiny_bundle: Bundle, noise: Wave) -> list[str]:
    with open_recognizer(tiny_bundle) as recognizer:
        found = recognizer.transcribe(clips(noise))
    assert all(found) and len(set(found)) == len(found)
    return found


def test_requests_of_any_length_and_padded_batches(
    tiny_bundle: Bundle, noise: Wave, expected: list[str], triton: FakeTriton, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "out", TritonOptions("asr"))
    model = opened(tmp_path / "out", "asr")
    waves = clips(noise)
    lengths = [len(wave) for wave in waves]
    padded = np.zeros((len(waves), max(lengths)), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    responses = model.execute([*(request(wave[None]) for wave in waves), request(padded, lengths)])
    model.finalize()
    assert [texts(response) for response in responses] == [[text] for text in expected] + [expected]


def test_a_bad_request_spoils_no_other(
    tiny_bundle: Bundle, noise: Wave, expected: list[str], triton: FakeTriton, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "out", TritonOptions("asr"))
    model = opened(tmp_path / "out", "asr")
    bad = noise[None, :16_000].copy()
    bad[0, 7] = np.nan
    good, short, infinite, empty = model.execute(
        [request(noise[None, :16_000]), request(noise[None, :10]), request(bad), request(bad, [0])]
    )
    assert texts(good) == expected[:1]
    assert "AUDIO[0]: its length is 10 at 16000 Hz" in short.error().message()
    assert "AUDIO[0]: sample 7 is nan" in infinite.error().message()
    assert "SAMPLES is [0]; give a number of 1 to 16000" in empty.error().message()
    assert [texts(one) for one in model.execute([request(noise[None, :16_000])])] == [expected[:1]]


@pytest.mark.parametrize("lengths", [[3], [3, 5, 4], [5, -1], [5, 6]])
def test_lengths_that_do_not_fit(lengths: list[int]) -> None:
    with pytest.raises(AudioError, match="SAMPLES is"):
        waves_of(np.zeros((2, 5), np.float32), np.array(lengths))


def test_the_graph_is_another_model_of_triton(
    tiny_bundle: Bundle, noise: Wave, expected: list[str], triton: FakeTriton, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "out", TritonOptions("asr", "onnxruntime"))
    parameters = {"graph": "asr-graph", "graph_lengths_type": "int64"}
    model = opened(tmp_path / "out", "asr", **parameters)
    with open_session(tiny_bundle) as session:
        triton.graph = session.run
        responses = model.execute([request(wave[None]) for wave in clips(noise)])
    assert [texts(response) for response in responses] == [[text] for text in expected]
    assert {asked["model_name"] for asked in triton.asked} == {"asr-graph"}
    assert triton.asked[0]["preferred_memory"] == ("cpu", 0)

    def fails(_: object) -> Any:
        raise ValueError("out of\nmemory")

    triton.graph = fails
    (failed,) = model.execute([request(noise[None, :16_000])])
    assert failed.error().message() == "asr-graph: out of memory"


def test_an_engines_limits_are_kept(
    tiny_bundle: Bundle, noise: Wave, expected: list[str], triton: FakeTriton, tmp_path: Path
) -> None:
    limits = {"samples": Limits(400, 16_000, 32_000), "batch": Limits(1, 1, 2)}
    engine = engine_of(tiny_bundle, tmp_path / "engine", replace(MANIFEST, limits=limits))
    write_repository(engine, tmp_path / "out", TritonOptions("asr", "tensorrt"))
    model = opened(tmp_path / "out", "asr", graph="asr-graph", graph_lengths_type="int32")
    shapes: list[tuple[int, ...]] = []

    with open_session(tiny_bundle) as session:

        def graph(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            shapes.append(feeds["input_values"].shape)
            assert feeds["input_lengths"].dtype == np.int32
            return session.run({**feeds, "input_lengths": feeds["input_lengths"].astype(np.int64)})

        triton.graph = graph
        batch = np.repeat(noise[None, :16_000], 3, axis=0)
        many, long = model.execute([request(batch), request(np.tile(noise, 2)[None])])
    assert texts(many) == expected[:1] * 3
    assert sorted(shapes) == [(1, 16_000), (2, 16_000)]
    assert "the engine was built for" in long.error().message()


def test_a_whisper_model(
    whisper_bundle: Bundle, noise: Wave, triton: FakeTriton, tmp_path: Path
) -> None:
    write_repository(whisper_bundle, tmp_path / "out", TritonOptions("whisper"))
    model = opened(tmp_path / "out", "whisper", language="en", threads="1")
    with open_recognizer(whisper_bundle, decoding=DecodingOptions(language="en")) as recognizer:
        wanted = recognizer.transcribe([noise[:8_000]])
    (response,) = model.execute([request(noise[None, :8_000])])
    assert texts(response) == wanted


def test_a_graph_that_triton_does_not_have(triton: FakeTriton, tiny_bundle: Bundle) -> None:
    def missing(_: object) -> Any:
        raise ValueError("Failed for execute the inference request. Model 'x' is not ready.")

    triton.graph = missing
    with (
        TritonGraphSession("x", tiny_bundle.only_graph.spec, None, "int64") as session,
        pytest.raises(EngineError, match="x: Failed for execute"),
    ):
        session.run({"input_values": np.zeros((1, 5), np.float32)})
