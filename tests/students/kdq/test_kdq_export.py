"""A KDQ student as bundles: its levels and scales are those that it was trained with."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from shared_artifacts import SharedArtifacts
from tiny_whisper import save_tiny_whisper

from speechquant.calibrators.balance import KEPT_COUNTS
from speechquant.calibrators.methods import BALANCED, MethodOptions
from speechquant.core.bundles import FLOAT_PRECISION, Bundle
from speechquant.core.errors import CheckpointError
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable, write_scales
from speechquant.core.seq2seq import ENCODER, PREFILL, STEP
from speechquant.core.specs import graph_file
from speechquant.core.text import normalizer
from speechquant.core.weights import (
    TRAINED_WEIGHTS_FILE,
    TrainedWeight,
    read_trained_weights,
    write_trained_weights,
)
from speechquant.core.wer import score_wer
from speechquant.engines import DecodingOptions, open_recognizer, quantize_bundle
from speechquant.engines.balance import balanced_bundle
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.graphs.channel_division import ChannelChange
from speechquant.engines.trials.simulation import rounded_weights
from speechquant.exporter import export, onnx_graph
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.data import ClipList
from speechquant.recipes.quantize import QuantizeOptions, quantize
from speechquant.students.distil import read_teacher
from speechquant.students.kdq.run import KdqRun, Pair, train
from speechquant.students.kdq.settings import APOT, UNIFORM, Plan, Settings
from speechquant.students.student import Shape, student_of
from speechquant.training.samples import Sample

# A token a letter: twice as many as these are more than the model can write.
TEXT = "go on and on"
SETTINGS = Settings(
    steps=4, warmup_steps=1, batch_seconds=4.0, save_every=4, score_every=4,
    peak_learning_rate=1e-2, quantize_from=1, variants=2,
)  # fmt: skip


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample((3000 * rng.standard_normal(9_000 + 2_000 * i)).astype(np.int16), TEXT)
        for i in range(count)
    ]


def trained(folder: Path, quantizer: str, share: float) -> KdqRun:
    torch.set_num_threads(1)
    teacher = read_teacher(str(save_tiny_whisper(folder / "teacher", decoder_layers=4)), "en")
    out = folder / "run"
    out.mkdir()
    (out / "settings.json").write_text("{}")
    student = student_of(teacher.model, Shape(2, 2, "none"))
    plan = Plan("restrained", quantizer, share)
    run = KdqRun(out, SETTINGS, plan, Pair(teacher, student), folder / "encoded")
    train(run, [(1.0, samples(4))], {"dev": samples(2)})
    return run


@pytest.fixture(scope="module")
def uniform_run(tmp_path_factory: pytest.TempPathFactory) -> KdqRun:
    return trained(tmp_path_factory.mktemp("uniform"), UNIFORM, 1.0)


@pytest.fixture(scope="module")
def uniform_bundle(uniform_run: KdqRun, shared: SharedArtifacts) -> Iterator[Bundle]:
    """A student has the shape of the tiny Whisper, and an export compares it with torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "traced", shared.earlier_trace_of_weights)
        yield export(str(uniform_run.folder / "best"), uniform_run.folder / "bundle")


@pytest.fixture(scope="module")
def apot_run(tmp_path_factory: pytest.TempPathFactory) -> KdqRun:
    return trained(tmp_path_factory.mktemp("apot"), APOT, 0.5)


@pytest.fixture(scope="module")
def apot_bundle(apot_run: KdqRun) -> Bundle:
    return export(str(apot_run.folder / "best"), apot_run.folder / "bundle")


def initializers(bundle: Bundle, graph: str) -> dict[str, NDArray[Any]]:
    model = onnx.load(str(bundle.folder / graph_file(graph)))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def table_of(bundle: Bundle, **changed: Any) -> ScaleTable:
    rows = {
        name: Scale(layer, 0.05, 0.05 * 127) for name, layer in bundle.spec.activations().items()
    }
    table = ScaleTable(bundle.model_sha256, "max", Bits(), rows)
    return replace(table, **changed)


def weights_alone(bundle: Bundle) -> ScaleTable:
    """No activation is rounded, and of the weights those of the decoder's blocks alone."""
    layers = bundle.spec.layer_names
    blocks = [name for name in layers if name == "cross" or name.startswith("decoder.block")]
    others = tuple(name for name in layers if name not in blocks)
    return table_of(bundle, tensors={}, float_layers=others, float_activations=tuple(blocks))


def test_the_integers_and_scales_of_a_bundle_are_those_of_the_training(
    uniform_run: KdqRun, uniform_bundle: Bundle, tmp_path: Path
) -> None:
    checkpoint = read_trained_weights(uniform_run.folder / "best")
    quantized = quantize_bundle(uniform_bundle, tmp_path / "w8a8", table_of(uniform_bundle))
    seen = set()
    for graph in (PREFILL, STEP):
        after = initializers(quantized, graph)
        for name, weight in checkpoint.items():
            own = name.removeprefix("model.").replace(".fc", ".feed_forward.fc")
            if f"{own}_quantized" not in after:
                continue  # keys and values of the audio are computed before the first step
            seen.add(name)
            np.testing.assert_array_equal(after[f"{own}_quantized"], weight.integers.T)
            assert after[f"{own}_quantized"].dtype == np.int8
            assert set(after[f"{own}_scale"].tolist()) == {float(weight.scale)}
    assert seen == checkpoint.keys() and len(seen) == 20
    assert quantized.made_from["weight_rounding"] == "trained"
    assert TRAINED_WEIGHTS_FILE not in quantized.files
    encoder = initializers(quantized, ENCODER)
    scales = encoder["layers.0.feed_forward.fc1.weight_scale"]
    assert len(set(scales.tolist())) > 1, "what was not trained has a scale for each channel"


def test_the_bundle_makes_the_errors_that_the_training_simulated(
    uniform_run: KdqRun, uniform_bundle: Bundle, tmp_path: Path
) -> None:
    quantized = quantize_bundle(uniform_bundle, tmp_path / "w8", weights_alone(uniform_bundle))
    heard = samples(6)
    expected = uniform_run.transcribe(heard)
    options = DecodingOptions(language="en", temperatures=(0.0,))
    with open_recognizer(quantized, decoding=options) as recognizer:
        found = recognizer.transcribe([sample.floats for sample in heard])
    normalize = normalizer("whisper")
    rates = [
        score_wer([normalize(s.text) for s in heard], list(map(normalize, texts))).rate
        for texts in (expected, found)
    ]
    assert found == expected and rates[0] == rates[1]
    assert len(set(expected)) > 1


def test_balancing_leaves_the_trained_integers_alone(
    uniform_run: KdqRun, uniform_bundle: Bundle, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.1 * rng.standard_normal(16_000), 16_000)
    request = CalibrationRequest(
        uniform_bundle,
        ClipList((LabelledClip(tmp_path / "a.wav", None),)),
        method=MethodOptions(BALANCED, symmetric=False),
        threads=1,
    )
    made = quantize(request, QuantizeOptions(tmp_path / "w8a8"))
    assert made.bundle.made_from["weight_rounding"] == "trained"
    in_encoder = uniform_bundle.graphs[ENCODER].spec.layers
    rows = {name: row for name, row in made.report["balance"].items() if name not in in_encoder}
    assert rows and all(row["divided_channels"] == 0 for row in rows.values())
    assert any(
        row["divided_channels"]
        for name, row in made.report["balance"].items()
        if name in in_encoder
    ), "what was not trained is balanced as ever"
    after = initializers(made.bundle, PREFILL)
    for name, weight in read_trained_weights(uniform_bundle.folder).items():
        if f"{name}_quantized" in after:
            levels = after[f"{name}_quantized"]
            is_kept = ~levels.any(axis=1)
            np.testing.assert_array_equal(levels[~is_kept], weight.integers[~is_kept])
            assert is_kept.sum() <= max(KEPT_COUNTS)
            assert set(after[f"{name}_scale"].tolist()) == {float(weight.scale)}


def test_a_channel_in_float_leaves_zeros_among_the_integers(
    uniform_bundle: Bundle, tmp_path: Path
) -> None:
    weights = read_trained_weights(uniform_bundle.folder)
    kept, divided = "decoder.layers.0.feed_forward.fc2", "decoder.layers.1.feed_forward.fc2"
    ones = np.ones(len(weights[f"{kept}.weight"].codes), np.float32)
    changes = {
        f"{kept}.input": ChannelChange(ones, (3,)),
        f"{divided}.input": ChannelChange(2 * ones),
    }
    balanced = balanced_bundle(uniform_bundle, tmp_path / "balanced", changes)
    found = read_trained_weights(balanced.folder)
    assert found.keys() == weights.keys() - {f"{divided}.weight"}
    for name, weight in found.items():
        expected = weights[name].integers.copy()
        if name == f"{kept}.weight":
            expected[3] = 0
        np.testing.assert_array_equal(weight.integers, expected)
    feeds = [sample.floats for sample in samples(2)]
    texts = []
    for bundle in (uniform_bundle, balanced):
        with open_recognizer(bundle, decoding=GREEDY) as recognizer:
            texts.append(recognizer.transcribe(feeds))
    assert texts[0] == texts[1]


def test_trials_of_a_search_see_the_trained_weights(uniform_bundle: Bundle) -> None:
    graph = uniform_bundle.graphs[PREFILL]
    rounded = rounded_weights(graph, table_of(uniform_bundle), {})
    for name, weight in read_trained_weights(uniform_bundle.folder).items():
        np.testing.assert_array_equal(rounded[name], weight.values)


def test_fewer_bits_round_the_weights_again(uniform_bundle: Bundle, tmp_path: Path) -> None:
    table = table_of(uniform_bundle, bits=Bits(4, 8))
    quantized = quantize_bundle(uniform_bundle, tmp_path / "w4", table)
    assert quantized.made_from["weight_rounding"] == "nearest"


@pytest.mark.slow  # a second training and export
def test_a_student_of_powers_of_two_is_a_float_bundle_with_its_levels(
    apot_run: KdqRun,
    apot_bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert apot_bundle.spec.precision == FLOAT_PRECISION
    assert TRAINED_WEIGHTS_FILE in apot_bundle.files
    weights = read_trained_weights(apot_bundle.folder)
    assert len(weights) == 10
    values = initializers(apot_bundle, PREFILL)
    for name, weight in weights.items():
        assert weight.codes.dtype == np.uint8 and len(weight.levels) == 255
        np.testing.assert_array_equal(values[name], weight.values)
    write_scales(table_of(apot_bundle), tmp_path / "scales.json")
    options = QuantizeOptions(tmp_path / "w8a8", scales=tmp_path / "scales.json")
    with caplog.at_level(logging.WARNING, logger="speechquant"):
        made = quantize(CalibrationRequest(apot_bundle, None), options)
    assert "sums of powers of two, which no backend multiplies" in caplog.text
    assert made.bundle.made_from["weight_rounding"] == "nearest"


def test_levels_of_other_weights_are_refused(uniform_run: KdqRun, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(uniform_run.folder / "best", folder)
    weights = read_trained_weights(folder)
    name = next(iter(weights))
    codes = weights[name].codes.copy()
    codes[0, 0] ^= 1
    other = {**weights, name: TrainedWeight(codes, weights[name].levels, weights[name].scale)}
    write_trained_weights(other, folder / TRAINED_WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=f"other values for {name} than the model"):
        load_whisper(str(folder))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", b"PK\x03\x04 cut"],
)
def test_a_broken_file_of_levels_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRAINED_WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="not as this version writes it") as raised:
        read_trained_weights(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"levels": np.zeros(3)}, "levels are float64"),
        ({"a.codes": np.array([9], np.uint8)}, "codes of a are none of the 3 levels"),
        ({"a.scale": np.float32(0)}, "scale of a is 0.0"),
    ],
)
def test_levels_that_cannot_be(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    arrays: dict[str, Any] = {
        "levels": np.array([-1, 0, 1], np.int16),
        "a.codes": np.array([2], np.uint8),
        "a.scale": np.float32(0.5),
    }
    np.savez(tmp_path / TRAINED_WEIGHTS_FILE, **arrays)
    assert read_trained_weights(tmp_path)["a"].values.tolist() == [0.5]
    np.savez(tmp_path / TRAINED_WEIGHTS_FILE, **{**arrays, **changed})
    with pytest.raises(CheckpointError, match=said):
        read_trained_weights(tmp_path)
