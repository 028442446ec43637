"""Repositories served by a real Triton, asked by NVIDIA's own client; see tests/triton_server.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plans import engine_of
from triton_server import INSTALL, python_beside, serving, triton_environment

from speechquant.core.bundles import Bundle
from speechquant.engines import open_recognizer
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.triton.repository import TritonOptions, write_repository

ENVIRONMENT = triton_environment()
pytestmark = pytest.mark.skipif(ENVIRONMENT is None, reason=f"no Triton: {INSTALL}")

CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as http

url, work = sys.argv[1:]
rows = json.load(open(f"{work}/asked.json"))
client = http.InferenceServerClient(url, concurrency=16)
begun = []
for row in rows:
    audio = np.load(row["audio"])
    inputs = [http.InferInput("AUDIO", audio.shape, "FP32")]
    inputs[0].set_data_from_numpy(audio)
    if row["lengths"]:
        lengths = np.array(row["lengths"], np.int32)[:, None]
        inputs.append(http.InferInput("SAMPLES", lengths.shape, "INT32"))
        inputs[1].set_data_from_numpy(lengths)
    begun.append(client.async_infer(row["model"], inputs))
answers = []
for one in begun:
    try:
        answers.append([text.decode() for text in one.get_result().as_numpy("TEXT").ravel()])
    except Exception as error:
        answers.append(str(error))
statistics = client.get_inference_statistics()["model_stats"]
client.close()
json.dump({"answers": answers, "statistics": statistics}, sys.stdout)
"""
# Of Triton's backends the wheel has the one for Python alone; this stands in for onnxruntime.
GRAPH = """
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        file = next(Path(__file__).parent.glob("*.onnx"))
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {one.name(): one.as_numpy() for one in request.inputs()}
        (logits,) = self.session.run(["logits"], feeds)
        return triton.InferenceResponse([triton.Tensor("logits", logits)])
"""
PARSE = """
import sys
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
for path in sys.argv[1:]:
    config = text_format.Parse(open(path).read(), ModelConfig())
    print(config.name, config.backend, config.max_batch_size, len(config.input), len(config.output))
"""


@pytest.fixture(scope="module")
def repositories(
    tiny_bundle: Bundle, whisper_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    root = tmp_path_factory.mktemp("repositories")
    whole = TritonOptions("ctc", most_clips=4, most_wait_ms=500, threads=1)
    apart = TritonOptions("apart", "onnxruntime", most_clips=4)
    write_repository(tiny_bundle, root / "whole", whole)
    write_repository(tiny_bundle, root / "apart", apart)
    write_repository(whisper_bundle, root / "whisper", TritonOptions("whisper", threads=1))
    graph = root / "apart" / "apart-graph"
    config = (graph / "config.pbtxt").read_text()
    (graph / "config.pbtxt").write_text(
        config.replace('backend: "onnxruntime"', 'backend: "python"').replace(
            "default_model_filename", "# "
        )
    )
    (graph / "1" / "model.py").write_text(GRAPH)
    return [root / name for name in ("whole", "apart", "whisper")]


@pytest.fixture(scope="module")
def server(repositories: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert ENVIRONMENT is not None
    with serving(ENVIRONMENT, repositories, tmp_path_factory.mktemp("triton")) as url:
        yield url


def ask(url: str, work: Path, *requests: tuple[str, NDArray[Any], list[int]]) -> dict[str, Any]:
    assert ENVIRONMENT is not None
    rows = []
    for number, (model, audio, lengths) in enumerate(requests):
        np.save(work / f"{number}.npy", audio)
        rows.append({"model": model, "audio": str(work / f"{number}.npy"), "lengths": lengths})
    (work / "asked.json").write_text(json.dumps(rows))
    answer: dict[str, Any] = json.loads(python_beside(ENVIRONMENT, CLIENT, url, work))
    return answer


@pytest.fixture(scope="module")
def clips(noise: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [noise[:16_000], noise[:20_000], noise[5_000:13_000], noise[3_000:23_000]]


@pytest.fixture(scope="module")
def wanted(tiny_bundle: Bundle, clips: list[NDArray[np.float32]]) -> list[str]:
    with open_recognizer(tiny_bundle) as recognizer:
        texts = recognizer.transcribe(clips)
    assert all(texts) and len(set(texts)) == len(texts)
    return texts


@pytest.mark.parametrize("model", ["ctc", "apart"])
def test_clips_of_any_length_share_batches_and_a_bad_one_spoils_none(
    server: str, clips: list[NDArray[np.float32]], wanted: list[str], tmp_path: Path, model: str
) -> None:
    requests = [(model, wave[None], []) for wave in clips]
    heard = ask(server, tmp_path, *requests, (model, clips[0][None, :10], []))
    assert heard["answers"][:-1] == [[text] for text in wanted]
    assert "AUDIO[0]: its length is 10 at 16000 Hz" in heard["answers"][-1]
    (facts,) = [row for row in heard["statistics"] if row["name"] == model]
    assert facts["inference_count"] == len(requests) + 1
    if model == "ctc":  # whose batches wait half a second for each other
        assert facts["execution_count"] <= len(requests)


def test_a_padded_batch(
    server: str, clips: list[NDArray[np.float32]], wanted: list[str], tmp_path: Path
) -> None:
    lengths = [len(wave) for wave in clips]
    padded = np.zeros((len(clips), max(lengths)), np.float32)
    for row, wave in zip(padded, clips, strict=True):
        row[: len(wave)] = wave
    heard = ask(server, tmp_path, ("ctc", padded, lengths), ("ctc", padded, [0, 1, 2, 3]))
    assert heard["answers"][0] == wanted
    assert "SAMPLES is [0, 1, 2, 3]" in heard["answers"][1]


def test_a_whisper_model(
    server: str, whisper_bundle: Bundle, clips: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    with open_recognizer(whisper_bundle) as recognizer:
        texts = recognizer.transcribe([clips[2]])
    heard = ask(server, tmp_path, ("whisper", clips[2][None], []))
    assert heard["answers"] == [texts]


def test_tritons_own_parser_reads_every_configuration(
    tiny_bundle: Bundle, whisper_bundle: Bundle, tmp_path: Path
) -> None:
    assert ENVIRONMENT is not None
    engine = engine_of(tiny_bundle, tmp_path / "engine")
    asked = DecodingOptions(language="en", task="translate")
    for source, options in (
        (tiny_bundle, TritonOptions("a", provider="cpu", threads=2)),
        (tiny_bundle, TritonOptions("b", "onnxruntime")),
        (engine, TritonOptions("c", "tensorrt", most_clips=16)),
        (whisper_bundle, TritonOptions("d", decoding=asked)),
    ):
        write_repository(source, tmp_path / "out" / options.name, options)
    paths = sorted((tmp_path / "out").rglob("config.pbtxt"))
    said = python_beside(ENVIRONMENT, PARSE, *paths).splitlines()
    assert said == [
        "a python 8 2 1",
        "b python 8 2 1",
        "b-graph onnxruntime 0 2 1",
        "c python 16 2 1",
        "c-graph tensorrt 0 2 1",
        "d python 8 2 1",
    ]
