"""Engines of Whisper bundles: what is built, that it is read back, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from build_texts import options_from_text
from numpy.typing import NDArray
from quantized import whisper_w8a8

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import (
    Engine,
    EngineGraph,
    Limits,
    file_of,
    load_engine,
)
from speechquant.core.errors import EngineError, MissingPackageError, OptionError
from speechquant.core.seq2seq import ENCODER, GRAPHS, PREFILL, STEP
from speechquant.engines import BuildOptions, DecodingOptions, build_engine, open_recognizer
from speechquant.engines.onnxruntime.session import (
    OnnxRuntimeSession,
    have_exact_products,
    session_options,
)
from speechquant.engines.session import open_decoder_session, open_session
from speechquant.engines.tensorrt.graph import tensorrt_graph
from speechquant.engines.tensorrt.layers import LayerReport, read_layers
from speechquant.engines.tensorrt.ranges import largest_magnitudes
from speechquant.engines.tensorrt.targets import require_runnable
from speechquant.engines.whisper.graphs_to_build import seq2seq_graphs
from speechquant.exporter.whisper import export_whisper

SM86 = BuildOptions("tensorrt-rtx", "sm86")
ON_CPU = BuildOptions("onnxruntime")
GREEDY = DecodingOptions(temperatures=(0.0,))
PROMPTS = np.array([[301, 302, 306], [301, 303, 306]])
# Of the tiny model: 2 convolutions; 2 blocks of Q, K, V, out and 2 of the feed forward; in the
# decoder also Q and out of the encoder's attention in each of 2 blocks, and the head. The prompt's
# graph has the encoder's K and V of each block as well.
WITH_WEIGHTS = {ENCODER: 2 + 2 * 6, PREFILL: 2 * (6 + 4) + 1, STEP: 2 * (6 + 2) + 1}
ATTENTION = {ENCODER: 2 * 2, PREFILL: 2 * 4, STEP: 2 * 4}


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs speechquant[tensorrt-rtx]")


@pytest.fixture(scope="module")
def quantized(whisper_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return whisper_w8a8(whisper_bundle, tmp_path_factory.mktemp("q") / "w8a8")


@pytest.fixture(scope="module")
def stored(quantized: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build_engine(quantized, tmp_path_factory.mktemp("e") / "engine", ON_CPU)


def outputs_of(source: Bundle | Engine) -> list[NDArray[np.float32]]:
    """What the encoder, the prompt and three steps give."""
    spec = source.spec.features
    shape = (2, spec.mel_bins, spec.chunk_frames)
    features = np.random.default_rng(5).normal(0, 0.7, shape).astype(np.float32)
    provider = "auto" if isinstance(source, Engine) else "cpu"
    with open_decoder_session(source, provider=provider, threads=1) as session:
        hidden = session.encode(features)
        run = session.start(hidden, PROMPTS)
        return [hidden, run.prompt_logits, *(run.advance([60 + step, 70]) for step in range(3))]


def layers_of(engine: Engine, name: str) -> LayerReport:
    return read_layers(engine.folder / f"{name}.layers.json")


def test_a_stored_engine_computes_what_the_bundle_does(quantized: Bundle, stored: Engine) -> None:
    assert load_engine(stored.folder) == stored
    assert stored.spec == quantized.spec
    for mine, expected in zip(outputs_of(stored), outputs_of(quantized), strict=True):
        # The bundle is optimised one level further, which sums in another order.
        assert np.median(np.abs(mine - expected)) < 1e-4 * np.abs(expected).max()
    rng = np.random.default_rng(3)
    waves = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (9_000, 20_000, 70_000)]
    heard = []
    for source in (quantized, stored.folder):
        with open_recognizer(source, provider="cpu", threads=1, decoding=GREEDY) as recognizer:
            heard.append(recognizer.transcribe(waves))
    assert heard[0] == heard[1] and all(heard[0])


def test_a_stored_engine_has_what_is_needed_and_each_weight_of_the_decoder_once(
    quantized: Bundle, stored: Engine
) -> None:
    assert set(stored.files) == {
        "encoder.onnx", "decoder_prefill.onnx", "decoder_step.onnx", "decoder.onnx.data",
        "tokenizer.json",
    }  # fmt: skip
    places = {}
    for name in (PREFILL, STEP):
        model = onnx.load(str(stored.graphs[name].engine_path), load_external_data=False)
        external = [tensor.external_data for tensor in model.graph.initializer]
        places[name] = {row.value for rows in external for row in rows if row.key == "offset"}
    # The head, which is the embedding too, and of each of 2 blocks Q, K, V and out, Q and out, and
    # the feed forward. The prompt's graph has the encoder's K and V beside.
    assert len(places[STEP]) >= 1 + 2 * 8
    assert places[STEP] <= places[PREFILL]
    for name in GRAPHS:
        manifest = stored.manifests[name]
        assert (manifest.backend, manifest.target, manifest.limits) == ("onnxruntime", "cpu", {})
        assert manifest.source["model_sha256"] == quantized.model_sha256
        operators = {node.op_type for node in ir.load(stored.graphs[name].engine_path).graph}
        assert "MatMulIntegerToFloat" in operators and "Conv" not in operators


def test_a_damaged_engine_is_refused(stored: Engine, tmp_path: Path) -> None:
    truncated = Path(shutil.copytree(stored.folder, tmp_path / "truncated"))
    weights = truncated / "decoder.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"decoder.onnx.data: altered or truncated"):
        open_recognizer(truncated)
    without = Path(shutil.copytree(stored.folder, tmp_path / "without"))
    document = json.loads((without / "engine.json").read_text())
    document["manifests"]["decoder_step"]["target"] = "sm86"
    (without / "engine.json").write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"engine.json: altered since it was written"):
        open_recognizer(without)
    (without / "decoder_step.onnx").unlink()
    shutil.copyfile(stored.folder / "engine.json", without / "engine.json")
    with pytest.raises(EngineError, match=r"decoder_step\.onnx is missing"):
        open_recognizer(without)


def test_a_graph_that_onnx_runtime_refuses_is_named(stored: Engine, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored.folder, tmp_path / "copy"))
    (folder / "decoder_step.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"ONNX Runtime refuses decoder_step\.onnx"):
        open_decoder_session(replace(stored, folder=folder))


def test_what_takes_engines_of_ctc_models_says_so(stored: Engine) -> None:
    for use in (lambda folder: load_engine(folder).only_graph, open_session):
        with pytest.raises(EngineError, match="an engine of a Whisper model, which this step does"):
            use(stored.folder)
    with pytest.raises(OptionError, match="an engine of onnxruntime, which runs on nothing else"):
        open_recognizer(stored, provider="openvino")


def test_limits_are_those_of_the_model(whisper_bundle: Bundle) -> None:
    one = Limits(1, 1, 1)
    encoder, prefill, step = seq2seq_graphs(whisper_bundle, BuildOptions("tensorrt")).values()
    # 2 s are 200 frames and 100 positions; there are 24 tokens at the most.
    assert encoder.limits == {"batch": one, "frames": Limits(200, 200, 200)}
    batch, positions = Limits(1, 1, 8), Limits(100, 100, 100)
    assert prefill.limits == {"batch": batch, "positions": positions, "prompt": Limits(1, 4, 24)}
    assert step.limits == {"batch": batch, "positions": positions, "past": Limits(1, 6, 23)}
    assert len(step.caches) == 2 * 4 + 2 * 2 and "cross_keys.1" in step.caches
    assert "new_self_values.0" in step.caches
    asked = options_from_text(whisper_bundle, backend="tensorrt", batch="1,2,3")
    assert seq2seq_graphs(whisper_bundle, asked)[PREFILL].limits["batch"] == Limits(1, 2, 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"lengths": "1,2,3"}, "lengths are given, but a Whisper model is given whole chunks of 2"),
        ({"batch": "2,4,8"}, "the least of batch is 2, .* give --batch 1,4,8"),
        ({"batch": "4,2,8"}, "batch are 4, 2, 8; give the least"),
        ({"backend": "cuda"}, "no backend 'cuda'"),
        ({"backend": "onnxruntime", "batch": "1,1,1"}, "batch is given.*leave it out"),
    ],
)
def test_refused_options(
    whisper_bundle: Bundle, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    given = {"backend": "tensorrt-rtx", **asked}
    with pytest.raises(OptionError, match=message):
        options = options_from_text(whisper_bundle, **given)
        build_engine(whisper_bundle, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("rtx")
def test_an_unknown_target(whisper_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'gtx1080' is no target"):
        build_engine(
            whisper_bundle, tmp_path / "out", BuildOptions("tensorrt-rtx", target="gtx1080")
        )
    assert not list(tmp_path.iterdir())


def test_ranges_are_seen_on_feeds_that_follow_from_each_other(quantized: Bundle) -> None:
    graphs = seq2seq_graphs(quantized, SM86)
    feeds = {name: graphs[name].trial() for name in GRAPHS}
    with open_decoder_session(quantized, provider="cpu", threads=1) as session:
        hidden = session.encode(np.asarray(feeds[ENCODER]["features"]))
        run = session.start(hidden, np.asarray(feeds[PREFILL]["tokens"]))
        logits = run.advance(np.asarray(feeds[STEP]["tokens"])[0].tolist())
    for name, expected in ((PREFILL, run.prompt_logits), (STEP, logits)):
        largest = largest_magnitudes(graphs[name].source, feeds[name])
        # The bundle's graph as it is and rewritten for the CPU: single values tip over a half.
        assert largest["logits"] == pytest.approx(np.abs(expected).max(), rel=0.05)
        assert max(largest.values()) < 10_100
    table = json.loads((quantized.folder / "scales.json").read_text())
    seen = largest_magnitudes(graphs[STEP].source, feeds[STEP])
    assert seen["decoder.head.input"] >= table["tensors"]["decoder.head.input"]["amax"]


@pytest.mark.parametrize(("float_type", "cache"), [("fp16", np.float16), ("fp32", np.float32)])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_graphs_for_tensorrt_compute_what_the_bundle_does(
    whisper_bundle: Bundle,
    quantized: Bundle,
    float_type: str,
    cache: type,
    is_quantized: bool,
) -> None:
    graphs = seq2seq_graphs(quantized if is_quantized else whisper_bundle, SM86)
    options = session_options(1)
    have_exact_products(options)
    values: dict[str, Any] = {}
    for name in (PREFILL, STEP):
        model = tensorrt_graph(graphs[name], float_type, strongly_typed=True).model
        feeds = {key: np.asarray(value) for key, value in graphs[name].trial().items()}
        with OnnxRuntimeSession(graphs[name].source.model_path, options) as session:
            expected = session.run(feeds)
        narrowed = {
            key: value.astype(cache) if key in graphs[name].caches else value
            for key, value in feeds.items()
        }
        narrowed.update({key: values[key] for key in values.keys() & feeds.keys()})
        graph = ir.to_proto(model).SerializeToString()
        with OnnxRuntimeSession(graph, options) as session:
            values = session.run(narrowed)
        assert values["logits"].dtype == np.float32
        for key, value in values.items():
            assert value.dtype == (cache if key in graphs[name].caches else np.float32), key
            # In float16 an activation may tip to the next of its 8-bit levels.
            reach = 1e-5 if float_type == "fp32" else 3e-2 if is_quantized else 1e-2
            assert np.abs(value - expected[key]).max() <= reach * np.abs(expected[key]).max()


def test_the_graphs_for_tensorrt_before_10_do_too(whisper_bundle: Bundle) -> None:
    for graph in seq2seq_graphs(whisper_bundle, SM86).values():
        model = tensorrt_graph(graph, "fp16", strongly_typed=False).model
        assert model.graph.opset_imports[""] == 17
        assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT}
        feeds, found = graph.trial(), []
        for source in (graph.source.model_path, ir.to_proto(model).SerializeToString()):
            with OnnxRuntimeSession(source, session_options(1)) as session:
                found.append(session.run(feeds))
        for name, expected in found[0].items():
            reach = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(found[1][name], expected, rtol=0, atol=reach)


@pytest.mark.usefixtures("rtx")
def test_engines_for_sm86_and_what_lies_beside_them(quantized: Bundle, tmp_path: Path) -> None:
    engine = build_engine(quantized.folder, tmp_path / "engine", SM86)
    assert isinstance(engine, Engine)
    assert engine == load_engine(tmp_path / "engine")
    assert set(engine.files) == {
        "tokenizer.json",
        *(
            file_of(name, file)
            for name in GRAPHS
            for file in ("engine", "build.log", "layers.json")
        ),
    }
    logs = {name: (engine.folder / f"{name}.build.log").read_text() for name in GRAPHS}
    # Keys and values are handed on in float16, and a step may come after 1 to 23 tokens.
    cache = logs[STEP].split("Name: self_keys.0, IOMode")[1].splitlines()[0]
    assert "MinShape: [1,4,1,8], OptShape: [1,4,6,8], MaxShape: [8,4,23,8]" in cache
    assert "Half" in logs[STEP].split("Name: new_self_keys.0, Dimensions")[1].split("}")[0]
    for name in GRAPHS:
        manifest, report = engine.manifests[name], layers_of(engine, name)
        assert (manifest.target, manifest.float_type, manifest.float32_nodes) == (
            "sm86",
            "fp16",
            (),
        )
        counted = {True: 0, False: 0}
        for placed in report.placed():
            counted[placed.product.weighted] += 1
            assert placed.is_int8 == placed.product.weighted, placed.product.node
            assert not placed.falls_back
        assert counted == {True: WITH_WEIGHTS[name], False: ATTENTION[name]}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("float_type", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_other_types_of_the_rest(quantized: Bundle, tmp_path: Path, float_type: str) -> None:
    engine = build_engine(quantized, tmp_path / "engine", replace(SM86, float_type=float_type))
    for name in GRAPHS:
        assert not any(placed.falls_back for placed in layers_of(engine, name).placed())
    log = (engine.folder / f"{STEP}.build.log").read_text()
    cache = log.split("Name: new_self_keys.0, Dimensions")[1].split("}")[0]
    assert {"bf16": "BFloat16", "fp32": "Float"}[float_type] in cache


@pytest.mark.usefixtures("rtx")
def test_a_float_bundle_is_built_too_and_runs_on_its_gpu_alone(
    whisper_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(whisper_bundle, tmp_path / "engine", SM86)
    for name in GRAPHS:
        placed = layers_of(engine, name).placed()
        assert {item.runs for item in placed if item.product.weighted} == {"FP16 x FP16"}
    part: EngineGraph = engine.graphs[STEP]
    version = part.manifest.toolchain["tensorrt-rtx"]
    require_runnable(part, version, (8, 6))
    with pytest.raises(EngineError, match="built for sm86, and this GPU is sm89"):
        require_runnable(part, version, (8, 9))
    with pytest.raises(EngineError, match=r"built by tensorrt-rtx .* and 1\.0 is installed"):
        require_runnable(part, "1.0", (8, 6))

    def no_driver(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("speechquant.engines.tensorrt.targets.ctypes.CDLL", no_driver)
    with pytest.raises((EngineError, MissingPackageError), match=r"no NVIDIA driver|pycuda"):
        open_recognizer(engine)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_whisper_tiny_is_int8_throughout(tmp_path: Path) -> None:
    in_float, _ = export_whisper("random:whisper-tiny", tmp_path / "fp32")
    engine = build_engine(whisper_w8a8(in_float, tmp_path / "w8a8"), tmp_path / "engine", SM86)
    found = {}
    for name in GRAPHS:
        placed = layers_of(engine, name).placed()
        assert not any(item.falls_back for item in placed)
        found[name] = sum(item.is_int8 for item in placed)
    # 4 blocks each.
    assert found == {ENCODER: 2 + 4 * 6, PREFILL: 4 * 10 + 1, STEP: 4 * 8 + 1}
