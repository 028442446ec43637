"""Quantized Whisper bundles: what is calibrated, what is rounded, and what runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.calibrators.guard import leave_in_float
from speechquant.calibrators.methods import MethodOptions, table_from_statistics
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle, load_bundle, new_bundle
from speechquant.core.errors import BundleError
from speechquant.core.manifests import LabelledClip
from speechquant.core.onnx_files import save_graphs_together
from speechquant.core.scales import TENSOR, Bits, ScaleTable
from speechquant.core.scoring import Job, Trial
from speechquant.core.seq2seq import (
    CROSS,
    DECODER_DATA,
    ENCODER,
    GRAPHS,
    LAST_PROJECTION,
    PREFILL,
    STEP,
)
from speechquant.core.specs import graph_file
from speechquant.engines import DecodingOptions, open_recognizer, quantize_bundle
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.graphs.writer import (
    GraphWriter,
    add_constant,
    constant_of,
    remove_unused,
    replace_value,
)
from speechquant.engines.probes import open_probe
from speechquant.engines.quantize import QdqOptions
from speechquant.engines.scorers import new_scorer
from speechquant.engines.session import open_decoder_session
from speechquant.engines.trials.changed_graph import ChangedGraph, load_graph
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights
from speechquant.engines.trials.task import ScoringTask

RATE_HZ = 16_000
GREEDY = DecodingOptions(temperatures=(0.0,))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledClip]:
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    found = []
    for index in range(4):
        path = folder / f"{index}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(RATE_HZ + 3000 * index), RATE_HZ)
        found.append(LabelledClip(path, "one two"))
    return found


@pytest.fixture(scope="module")
def seen(whisper_bundle: Bundle, clips: list[LabelledClip]) -> ActivationStatistics:
    statistics = ActivationStatistics(len(clips))
    with open_probe(whisper_bundle, 1) as probe:
        for clip in clips:
            statistics.add_utterance(probe.activations_of(clip))
    return statistics


def table_of(
    bundle: Bundle,
    seen: ActivationStatistics,
    options: MethodOptions,
    *,
    kept: Sequence[str] = (),
) -> ScaleTable:
    layers = {name: layer for name, layer in bundle.spec.layers.items() if layer not in kept}
    table = table_from_statistics(seen, layers, bundle.model_sha256, options)
    return replace(table, float_layers=tuple(kept))


@pytest.fixture(scope="module")
def table(whisper_bundle: Bundle, seen: ActivationStatistics) -> ScaleTable:
    return table_of(whisper_bundle, seen, MethodOptions("max"))


@pytest.fixture(scope="module")
def quantized(
    whisper_bundle: Bundle, table: ScaleTable, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return quantize_bundle(whisper_bundle, tmp_path_factory.mktemp("q") / "w8a8", table)


def test_a_bundle_with_every_layer_in_float_is_the_float_model(
    whisper_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    layers = tuple(sorted({row.layer for row in table.tensors.values()}))
    nothing = leave_in_float(table, layers)
    for name in GRAPHS:
        assert not rounded_weights(whisper_bundle.graphs[name], nothing, {})
    found = quantize_bundle(whisper_bundle, tmp_path / "float", nothing)
    rng = np.random.default_rng(0)
    mels = whisper_bundle.spec.features
    features = rng.normal(0, 0.7, (1, mels.mel_bins, mels.chunk_frames)).astype(np.float32)
    logits = []
    for bundle in (whisper_bundle, found):
        with open_decoder_session(bundle, provider="cpu", threads=1) as session:
            run = session.start(session.encode(features), np.array([[301, 302, 306]]))
            logits.append(run.prompt_logits)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)


def test_the_probe_shows_what_torch_computes(
    tiny_whisper: Path, whisper_bundle: Bundle, clips: list[LabelledClip]
) -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    with open_probe(whisper_bundle, 1) as probe:
        found = probe.activations_of(clips[1])
    assert set(found) == set(whisper_bundle.spec.layers)
    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper).eval()
    caught: dict[str, Any] = {}

    def catch(name: str, module: Any) -> None:
        module.register_forward_pre_hook(
            lambda _, given: caught.__setitem__(name, given[0].detach().numpy())
        )

    encoder, decoder = model.model.encoder, model.model.decoder
    catch("conv2.input", encoder.conv2)
    catch("layers.1.self_attn.out_proj.input", encoder.layers[1].self_attn.out_proj)
    catch("hidden", decoder.layers[1].encoder_attn.k_proj)
    catch("decoder.layers.1.feed_forward.fc2.input", decoder.layers[1].fc2)
    catch("decoder.head.input", model.proj_out)
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        features, tokens = recognizer.first_chunk(recognizer.read(clips[1].path))
    with torch.inference_mode():
        model(torch.from_numpy(features), decoder_input_ids=torch.tensor([tokens]))
    assert len(tokens) > 6
    assert np.array_equal(found["features"], features)
    for name, expected in caught.items():
        assert found[name] == pytest.approx(expected, abs=1e-4), name


class Simulation:
    """The three graphs that round by a table."""

    def __init__(self, bundle: Bundle, table: ScaleTable) -> None:
        graphs = {}
        for name in GRAPHS:
            part = bundle.graphs[name]
            graphs[name] = SimulatedSession(part, 1, rounded_weights(part, table, {}))
            graphs[name].use(table)
        self.session = Seq2SeqSession(graphs, lambda name: graphs[name].limits)


def on_cpu(bundle: Bundle) -> Seq2SeqSession:
    return open_decoder_session(bundle, provider="cpu", threads=1)


def outputs_of(session: Seq2SeqSession, seed: int = 5) -> list[NDArray[np.float32]]:
    """The encoder's output, the logits of a prompt, and those of three steps."""
    features = np.random.default_rng(seed).normal(0, 0.7, (2, 80, 200)).astype(np.float32)
    hidden = session.encode(features)
    run = session.start(hidden, np.array([[301, 302, 306], [301, 303, 306]]))
    return [hidden, run.prompt_logits, *(run.advance([60 + step, 70]) for step in range(3))]


@pytest.mark.parametrize(
    ("bits", "symmetric", "kept"),
    [(8, True, ()), (8, False, ()), (4, True, ()), (4, False, ()), (8, True, ("head",))],
)
def test_the_graphs_do_what_the_simulation_does(
    whisper_bundle: Bundle,
    seen: ActivationStatistics,
    tmp_path: Path,
    bits: int,
    symmetric: bool,
    kept: tuple[str, ...],
) -> None:
    options = MethodOptions("ema", Bits(bits, bits), symmetric=symmetric)
    table = table_of(whisper_bundle, seen, options, kept=kept)
    bundle = quantize_bundle(whisper_bundle, tmp_path / "out", table)
    sessions = [
        on_cpu(bundle),
        Simulation(whisper_bundle, table).session,
        on_cpu(whisper_bundle),
    ]
    shares = []
    for seed in range(5):
        rows = zip(*(outputs_of(session, seed) for session in sessions), strict=True)
        shares.append([np.abs(m - s).mean() / np.abs(s - plain).mean() for m, s, plain in rows])
    # A value on a half may round the other way, which moves what follows by a step: not on every
    # input, and then by less than quantization itself does.
    assert np.all(np.median(shares, axis=0) < 1e-3)
    assert np.max(shares) < 0.5


@pytest.fixture(scope="module")
def papers(
    whisper_bundle: Bundle, seen: ActivationStatistics, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, ScaleTable]:
    """As Wagner et al.: one scale a weight, all of them quantized, two layers' activations not."""
    exempt = (LAST_PROJECTION, CROSS)
    options = MethodOptions("ema", symmetric=False, weight_scales=TENSOR)
    table = table_of(whisper_bundle, seen, options, kept=exempt)
    table = replace(table, float_layers=(), float_activations=exempt)
    return quantize_bundle(whisper_bundle, tmp_path_factory.mktemp("papers") / "w8a8", table), table


def test_activations_of_a_layer_stay_float_while_its_weights_are_integers(
    papers: tuple[Bundle, ScaleTable],
) -> None:
    bundle, _ = papers
    model = onnx.load(str(bundle.graphs[PREFILL].model_path), load_external_data=False)
    reads = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    assert "hidden" in reads
    assert "hidden_dequantized" not in reads
    integers = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert any("encoder_attn.k_proj" in name for name in integers)


def test_a_scale_for_a_whole_weight(papers: tuple[Bundle, ScaleTable]) -> None:
    bundle, _ = papers
    model = onnx.load(str(bundle.graphs[ENCODER].model_path))
    scales = [t for t in model.graph.initializer if t.name.endswith("proj.weight_scale")]
    assert scales
    for tensor in scales:
        assert len(set(onnx.numpy_helper.to_array(tensor).tolist())) == 1, tensor.name


def test_the_papers_graphs_do_what_the_simulation_does(
    whisper_bundle: Bundle, papers: tuple[Bundle, ScaleTable]
) -> None:
    bundle, table = papers
    sessions = [on_cpu(bundle), Simulation(whisper_bundle, table).session, on_cpu(whisper_bundle)]
    shares = []
    for seed in range(5):
        rows = zip(*(outputs_of(session, seed) for session in sessions), strict=True)
        shares.append([np.abs(m - s).mean() / np.abs(s - plain).mean() for m, s, plain in rows])
    assert np.all(np.median(shares, axis=0) < 1e-3)


def test_rewriting_for_the_cpu_changes_nothing_but_the_order_of_sums(
    quantized: Bundle,
) -> None:
    plain = {
        name: ChangedGraph(load_graph(quantized.graphs[name], "a test"), quantized.graphs[name], 1)
        for name in GRAPHS
    }
    for mine, expected in zip(
        outputs_of(on_cpu(quantized)), outputs_of(Seq2SeqSession(plain)), strict=True
    ):
        assert np.median(np.abs(mine - expected)) < 1e-4 * np.abs(expected).max()


def test_every_weight_is_an_integer_stored_once(whisper_bundle: Bundle, quantized: Bundle) -> None:
    assert quantized.spec.precision == "w8a8"
    assert quantized.spec.graphs == whisper_bundle.spec.graphs
    places: dict[str, dict[str, str]] = {}
    for name in GRAPHS:
        model = onnx.load(str(quantized.graphs[name].model_path), load_external_data=False)
        weighted = [node for node in model.graph.node if node.op_type in ("MatMul", "Conv", "Gemm")]
        names = {tensor.name for tensor in model.graph.initializer}
        assert not any(node.input[1] in names for node in weighted)
        integers = [t for t in model.graph.initializer if t.name.endswith("weight_quantized")]
        assert {t.data_type for t in integers} == {onnx.TensorProto.INT8}
        places[name] = {
            t.name: next(e.value for e in t.external_data if e.key == "offset")
            for t in integers
            if t.external_data
        }
    # All that a step multiplies by is in the same place as what the prompt is multiplied by.
    assert places[STEP].items() <= places[PREFILL].items()
    assert not places[ENCODER]


def test_layers_left_in_float(
    whisper_bundle: Bundle, seen: ActivationStatistics, tmp_path: Path
) -> None:
    kept = (LAST_PROJECTION, CROSS)
    table = table_of(whisper_bundle, seen, MethodOptions("ema"), kept=kept)
    bundle = quantize_bundle(whisper_bundle, tmp_path / "out", table)

    def quantized_inputs(name: str) -> set[str]:
        model = onnx.load(str(bundle.graphs[name].model_path), load_external_data=False)
        return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}

    encoder, prefill = quantized_inputs(ENCODER), quantized_inputs(PREFILL)
    assert "layers.0.self_attn.out_proj.input" in encoder
    assert "layers.1.self_attn.out_proj.input" not in encoder
    assert "hidden" not in prefill and "decoder.head.input" in prefill
    assert len(encoder | prefill) == len(whisper_bundle.spec.layers) - 2


def test_both_spellings_say_the_same(
    whisper_bundle: Bundle, quantized: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    signed = quantize_bundle(whisper_bundle, tmp_path / "signed", table, QdqOptions(QdqFormat.S8))
    for mine, other in zip(
        outputs_of(on_cpu(signed)),
        outputs_of(on_cpu(quantized)),
        strict=True,
    ):
        assert np.array_equal(mine, other)


def test_scores_of_trials(
    whisper_bundle: Bundle,
    quantized: Bundle,
    table: ScaleTable,
    clips: list[LabelledClip],
) -> None:
    task = ScoringTask(whisper_bundle.folder, tuple(clips), threads=1)
    scorer = new_scorer(task)
    plain = replace(table, tensors={})
    trials = (Trial(plain, False, "float"), Trial(table, True, "all"), Trial(plain, False, "again"))
    scores = [list(scorer.score([Job(trial, n) for n in range(4)])) for trial in trials]
    assert scores[0] == scores[2]
    recognized: Mapping[str, list[str]] = {}
    for bundle, rows in ((whisper_bundle, scores[0]), (quantized, scores[1])):
        with open_recognizer(bundle, threads=1, decoding=GREEDY) as recognizer:
            waves = [recognizer.read(clip.path) for clip in clips]
            recognized = {**recognized, bundle.spec.precision: recognizer.transcribe(waves)}
        assert [score.words for score in rows] == [2] * 4
    assert [score.hypothesis for score in scores[0]] == [
        scorer._normalize(text)
        for text in recognized["fp32"]  # type: ignore[attr-defined]
    ]
    # Where the float model's own tokens are followed, its labels are those tokens.
    assert [len(score.labels) for score in scores[0]] == [len(s.labels) for s in scores[1]]
    changed = [
        a != b
        for s, t in zip(scores[0], scores[1], strict=True)
        for a, b in zip(s.labels, t.labels, strict=True)
    ]
    assert 0 < sum(changed) < 0.5 * len(changed)


def test_a_quantized_bundle_is_not_quantized_again(
    quantized: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="already quantized"):
        quantize_bundle(quantized, tmp_path / "out", table)


def decoder_graph(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load(str(bundle.graphs[name].model_path), load_external_data=False).graph


def test_the_embedding_and_the_head_are_the_same_integers(quantized: Bundle) -> None:
    places = []
    for name in (PREFILL, STEP):
        graph = decoder_graph(quantized, name)
        stored = {tensor.name: tensor for tensor in graph.initializer}
        assert not [tensor for tensor in stored if "embed_tokens" in tensor]
        readers = [n.op_type for n in graph.node if "decoder.head.weight_quantized" in n.input]
        assert sorted(readers) == ["DequantizeLinear", "Gather"]
        levels = stored["decoder.head.weight_quantized"]
        assert levels.data_type == onnx.TensorProto.INT8
        places.append({entry.key: entry.value for entry in levels.external_data})
    assert places[0] == places[1]
    assert places[0]["location"] == "decoder.onnx.data"


def untied(bundle: Bundle, target: Path) -> Bundle:
    """The same model with a table of its own for the embedding, as an untied checkpoint has it."""
    graphs = {name: ir.load(bundle.graphs[name].model_path) for name in (PREFILL, STEP)}
    for model in graphs.values():
        (lookup,) = [
            node for node in model.graph
            if node.op_type == "Gather" and node.inputs[1] in model.graph.inputs
        ]  # fmt: skip
        ((transpose, _),) = lookup.outputs[0].uses()
        assert transpose.op_type == "Transpose"
        table = constant_of(lookup.inputs[0])
        assert table is not None
        writer = GraphWriter(model, transpose)
        rows = add_constant(model, "table", np.ascontiguousarray(table.T))
        found = writer.add("Gather", rows, lookup.inputs[1], axis=0)
        replace_value(model, transpose.outputs[0], found)
        remove_unused(model)
    with new_bundle(target, bundle.spec, dict(bundle.made_from)) as folder:
        for name in set(bundle.files) - {"decoder.onnx.data"}:
            shutil.copyfile(bundle.folder / name, folder / name)
        save_graphs_together(
            {folder / graph_file(name): model for name, model in graphs.items()},
            folder / DECODER_DATA,
        )
    return load_bundle(target)


@pytest.mark.parametrize(("bits", "kept"), [(8, ()), (4, ()), (8, ("head",))])
def test_numbers_are_those_of_a_copy_for_each(
    whisper_bundle: Bundle,
    seen: ActivationStatistics,
    tmp_path: Path,
    bits: int,
    kept: tuple[str, ...],
) -> None:
    table = table_of(whisper_bundle, seen, MethodOptions("max", Bits(bits, 8)), kept=kept)
    apart = untied(whisper_bundle, tmp_path / "untied")
    other = replace(table, model_sha256=apart.model_sha256)
    found = quantize_bundle(whisper_bundle, tmp_path / "found", table)
    expected = quantize_bundle(apart, tmp_path / "expected", other)
    sizes = [(bundle.folder / DECODER_DATA).stat().st_size for bundle in (found, expected)]
    levels = whisper_bundle.spec.generation.end
    if bits == 8:
        assert sizes[1] - sizes[0] > 32 * levels  # a byte for each number of a token
    same = [
        np.array_equal(mine, theirs)
        for mine, theirs in zip(
            outputs_of(on_cpu(found)), outputs_of(on_cpu(expected)), strict=True
        )
    ]
    # Where the head's floats are stored, the embedding reads them instead of levels of its own.
    assert same == ([True, *4 * [False]] if kept else 5 * [True])
