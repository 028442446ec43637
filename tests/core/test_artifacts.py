"""What is on disk does not change with how specs are read: values of before one class read all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from speechquant.core.artifact_folders import digest_of
from speechquant.core.artifacts import SPECS, spec_from
from speechquant.core.bundles import Bundle, load_bundle, new_bundle
from speechquant.core.ctc import CtcDecoding, CtcSpec
from speechquant.core.engine_folders import EngineManifest, Limits, load_engine, make_engine
from speechquant.core.errors import BundleError, EngineError
from speechquant.core.seq2seq import GRAPHS, GenerationSpec, LogMelSpec, Seq2SeqSpec
from speechquant.core.specs import GraphSpec, Spec, TensorSpec

CTC_SPEC = CtcSpec(
    architecture="tiny",
    task="ctc",
    precision="fp32",
    sample_rate_hz=16_000,
    normalize_waveform=True,
    padding_exact=False,
    conv_kernels=(10, 3),
    conv_strides=(5, 2),
    attention_heads=2,
    inputs=(TensorSpec("input_values", "float32", ("batch", "samples")),),
    outputs=(TensorSpec("logits", "float32", ("batch", "frames", 3)),),
    layers={"a": "conv.0", "b": "head"},
    decoding=CtcDecoding(0, "|", ("<s>",), True),
    notes=("a note",),
    attention={"c": "block.0"},
)
GRAPH = GraphSpec(
    (TensorSpec("features", "float32", ("batch", 80, "frames")),),
    (TensorSpec("hidden", "float32", ("batch",)),),
    {"a": "encoder.conv.0"},
)
SEQ2SEQ_SPEC = Seq2SeqSpec(
    architecture="tiny",
    task="seq2seq",
    precision="fp32",
    sample_rate_hz=16_000,
    attention_heads=2,
    decoder_layers=1,
    features=LogMelSpec(80, 400, 160, 480_000),
    generation=GenerationSpec(start=1, end=2, max_tokens=8, languages={"en": 3}, suppressed=(4,)),
    graphs=dict.fromkeys(GRAPHS, GRAPH),
    notes=("a note",),
)
FILES = {
    "ctc": {"model.onnx": "aa", "model.onnx.data": "bb", "vocab.json": "cc", "scales.json": "dd"},
    "seq2seq": {
        "encoder.onnx": "aa",
        "decoder.onnx.data": "bb",
        "decoder_step.onnx": "ee",
        "tokenizer.json": "cc",
        "scales.json": "dd",
    },
}
SPEC_OF: dict[str, Spec] = {"ctc": CTC_SPEC, "seq2seq": SEQ2SEQ_SPEC}

# What a manifest says of the bundle that it was made from.
SOURCE = {"model_sha256": "0" * 64, "precision": "w8a8", "made_from": {}}


@pytest.mark.parametrize(
    ("task", "model", "reading"),
    [
        (
            "ctc",
            "9c5a4ac46341f304b44cc139d135cce51ee57f96e7e30deedf8d5d784980adda",
            "08168cbea696b7bb28c904fd311b37cb7b76a64dedc18b5c0e77f67fe065b4b5",
        ),
        (
            "seq2seq",
            "89cbb39740fb161425797cb758b03ca02d044fdc61c09e92176d2e51137cef3c",
            "930d173e0f0d91c770ff0d7b1c2fef6f7ea571b890577c2036dd1e1eef8bafe5",
        ),
    ],
)
def test_hashes_are_those_that_older_tables_and_logs_name(
    task: str, model: str, reading: str
) -> None:
    bundle = Bundle(Path("x"), SPEC_OF[task], FILES[task])
    assert (bundle.model_sha256, bundle.reading_sha256) == (model, reading)


@pytest.mark.parametrize(
    ("task", "sha256"),
    [
        ("ctc", "d3ba92ede7e792bcd09dd03dab6b9ba82aaf28f4b9db7f704d15622bbfeadf64"),
        ("seq2seq", "e91a3d16d7f1361d9a4ff3c7bab01db35b6639571d0999fd6f0cf0fe2f48ccad"),
    ],
)
def test_a_description_is_written_as_before_and_read_back(task: str, sha256: str) -> None:
    document = asdict(SPEC_OF[task])  # type: ignore[call-overload]
    assert spec_from({"spec": json.loads(json.dumps(document))}) == SPEC_OF[task]
    # The outputs of layers were added since.
    for described in (document, *document.get("graphs", {}).values()):
        assert described.pop("layer_outputs", {}) == {}
    text = json.dumps(document)
    assert hashlib.sha256(text.encode()).hexdigest() == sha256
    assert spec_from({"spec": json.loads(text)}) == SPEC_OF[task]


def written(folder: Path, spec: Spec) -> Bundle:
    with new_bundle(folder, spec, {}) as out:
        for name in FILES[spec.task] if spec.task == "ctc" else [*GRAPHS_FILES, "tokenizer.json"]:
            (out / name).write_bytes(name.encode())
    return load_bundle(folder)


GRAPHS_FILES = ("encoder.onnx", "decoder_prefill.onnx", "decoder_step.onnx")


def test_graphs_of_both_families(tmp_path: Path) -> None:
    ctc, whisper = written(tmp_path / "a", CTC_SPEC), written(tmp_path / "b", SEQ2SEQ_SPEC)
    assert list(ctc.graphs) == ["model"]
    assert ctc.only_graph == ctc.graphs["model"]
    assert ctc.only_graph.model_path == tmp_path / "a" / "model.onnx"
    assert ctc.only_graph.spec.activations(attention=True) == {
        "a": "conv.0", "b": "head", "c": "block.0",
    }  # fmt: skip
    assert [graph.model_path.name for graph in whisper.graphs.values()] == list(GRAPHS_FILES)
    assert whisper.size_bytes == sum(len(name) for name in (*GRAPHS_FILES, "tokenizer.json"))
    assert ctc.spec_as(CtcSpec) is ctc.spec
    assert whisper.spec_as(Seq2SeqSpec) is whisper.spec


def test_a_step_for_one_family_refuses_the_other_in_one_line(tmp_path: Path) -> None:
    ctc, whisper = written(tmp_path / "a", CTC_SPEC), written(tmp_path / "b", SEQ2SEQ_SPEC)
    line = "b: a bundle of task seq2seq, which this step does not take yet; give one of a ctc model"
    with pytest.raises(BundleError, match=line):
        _ = whisper.only_graph
    with pytest.raises(BundleError, match=line):
        whisper.spec_as(CtcSpec)
    with pytest.raises(BundleError, match=r"task ctc, which .*; give one of a seq2seq model"):
        ctc.spec_as(Seq2SeqSpec)


@pytest.mark.parametrize("task", ["transducer", ["ctc"]])
def test_a_task_of_a_later_version_is_named(tmp_path: Path, task: Any) -> None:
    written(tmp_path / "a", CTC_SPEC)
    path = tmp_path / "a" / "bundle.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    document["spec"]["task"] = task
    path.write_text(json.dumps({**document, "sha256": digest_of(document)}))
    with pytest.raises(BundleError, match=r"a: a bundle of task .*, which this step does not take"):
        load_bundle(tmp_path / "a")


@pytest.mark.parametrize("task", list(SPECS))
def test_the_description_of_an_engine_keeps_its_format(tmp_path: Path, task: str) -> None:
    spec = SPEC_OF[task]
    manifests = {
        name: EngineManifest(
            "onnxruntime", f"{name}.plan", "cpu", {}, SOURCE, "fp32", {"batch": Limits(1, 2, 3)},
            build_seconds=0.25,
        )
        for name in spec.graphs
    }  # fmt: skip

    def make(folder: Path) -> dict[str, EngineManifest]:
        for name in (*(one.engine_file for one in manifests.values()), spec.labels_file):
            (folder / name).write_bytes(b"four")
        return manifests

    engine = make_engine(tmp_path / "e", spec, make)
    document = json.loads((tmp_path / "e" / "engine.json").read_text())
    if task == "ctc":
        assert "manifests" not in document
        assert document["manifest"]["engine_file"] == "model.plan"
        assert engine.only_graph.name == "model"
    else:
        assert "manifest" not in document
        assert list(document["manifests"]) == list(GRAPHS)
        with pytest.raises(EngineError, match="e: an engine of a Whisper model, which this step"):
            _ = engine.only_graph
        with pytest.raises(
            EngineError, match=r"e: an engine of a Whisper model, .* of a CTC model"
        ):
            engine.spec_as(CtcSpec)
    assert load_engine(tmp_path / "e") == engine
    assert engine.manifests == manifests
    assert engine.manifest.limits == {"batch": Limits(1, 2, 3)}
    assert engine.build_seconds == 0.25 * len(manifests)
    assert engine.size_bytes == 4 * (len(manifests) + 1)
