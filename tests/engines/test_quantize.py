from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from shared_artifacts import SharedArtifacts

from speechquant.core import onnx_files
from speechquant.core.bundles import Bundle
from speechquant.core.errors import (
    BundleError,
    MissingPackageError,
    OptionError,
    OutputExistsError,
    ScaleError,
)
from speechquant.core.scales import Bits, Scale, ScaleTable, largest_level, read_scales
from speechquant.engines import open_recognizer, open_session
from speechquant.engines.ctc.probe import ProbeSession
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.quantize import QdqOptions, quantize_bundle

Arrays = Mapping[str, NDArray[Any]]


def feeds() -> dict[str, NDArray[Any]]:
    values = np.random.default_rng(1).standard_normal((2, 8000)).astype(np.float32)
    return {"input_values": values, "input_lengths": np.array([8000, 6000], np.int64)}


def logits_of(bundle: Bundle) -> NDArray[np.float32]:
    with open_session(bundle, threads=1) as session:
        return session.run(feeds())["logits"]


def largest_values(bundle: Bundle) -> dict[str, float]:
    with ProbeSession(bundle, threads=1) as session:
        activations = session.run(feeds())
    return {name: float(np.abs(values).max()) for name, values in activations.items()}


def table_of(bundle: Bundle, amax: Mapping[str, float], bits: Bits, **changes: Any) -> ScaleTable:
    rows = {
        name: Scale(layer, amax[name] / largest_level(bits.activations), amax[name])
        for name, layer in bundle.spec.layers.items()
    }
    return replace(ScaleTable(bundle.model_sha256, "max", bits, rows), **changes)


@pytest.fixture(scope="module")
def amax(tiny_bundle: Bundle) -> dict[str, float]:
    return largest_values(tiny_bundle)


@pytest.fixture
def table(tiny_bundle: Bundle, amax: dict[str, float]) -> ScaleTable:
    return table_of(tiny_bundle, amax, Bits())


def initializers(bundle: Bundle) -> dict[str, NDArray[Any]]:
    model = onnx.load(str(bundle.only_graph.model_path))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_every_weight_is_int8_and_within_half_a_step(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    bundle = quantize_bundle(tiny_bundle, tmp_path / "out", table)
    before, after = initializers(tiny_bundle), initializers(bundle)
    weights = [name for name in before if f"{name}_quantized" in after]
    # 7 + 1 convolutions, the projection, 6 matrices in each of 2 blocks, the head.
    assert len(weights) == 7 + 1 + 1 + 2 * 6 + 1
    for name in weights:
        assert name not in after
        levels, scales = after[f"{name}_quantized"], after[f"{name}_scale"]
        assert levels.dtype == np.int8
        is_convolution = before[name].ndim == 3
        scales = scales[:, None, None] if is_convolution else scales[None, :]
        assert np.abs(levels * scales - before[name]).max() <= scales.max() / 2 * 1.0001
    stored = sum(after[f"{name}_quantized"].nbytes for name in weights)
    assert stored == sum(before[name].nbytes for name in weights) // 4
    assert bundle.size_bytes < tiny_bundle.size_bytes


def test_the_bundle_opens_and_says_what_made_it(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path, noise: NDArray[np.float32]
) -> None:
    report = tmp_path / "report.txt"
    report.write_text("from a file")
    bundle = quantize_bundle(
        tiny_bundle.folder,
        tmp_path / "out",
        table,
        QdqOptions(QdqFormat.S8, extra_files={"search.jsonl": b"{}\n", "notes/report.txt": report}),
    )
    assert bundle.spec == replace(tiny_bundle.spec, precision="w8a8")
    assert set(bundle.files) == {
        *tiny_bundle.files, "scales.json", "search.jsonl", "notes/report.txt",
    }  # fmt: skip
    assert read_scales(bundle.folder / "scales.json") == table
    assert (bundle.folder / "notes" / "report.txt").read_text() == "from a file"
    made_from = json.loads(json.dumps(bundle.made_from))
    tools = made_from.pop("tools")
    assert made_from == {
        "parent": {
            "model_sha256": tiny_bundle.model_sha256,
            "made_from": tiny_bundle.made_from,
        },
        "scales": {"key": table.key, "method": "max"},
        "qdq_format": "s8",
        "weight_rounding": "nearest",
    }
    assert tools["onnx"] == onnx.__version__
    with open_recognizer(bundle) as recognizer:
        assert len(recognizer.transcribe([noise])) == 1


def test_sixteen_bits_are_next_to_float(
    tiny_bundle: Bundle, amax: dict[str, float], tmp_path: Path
) -> None:
    exact = logits_of(tiny_bundle)
    errors = []
    for bits in (Bits(4, 4), Bits(8, 8), Bits(16, 16)):
        table = table_of(tiny_bundle, amax, bits)
        bundle = quantize_bundle(tiny_bundle, tmp_path / bits.name, table)
        errors.append(float(np.abs(logits_of(bundle) - exact).max() / np.abs(exact).max()))
    assert errors[2] < 1e-3 < errors[1] < 0.1 < errors[0]


def test_both_spellings_give_the_same_logits(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    first, second = (
        logits_of(
            quantize_bundle(tiny_bundle, tmp_path / qdq_format.value, table, QdqOptions(qdq_format))
        )
        for qdq_format in QdqFormat
    )
    # Other kernels sum in another order, and one bit can tip a value over a half further on.
    assert np.abs(first - second).max() < 0.02 * np.abs(first).max()


def test_float_layers_stay_float(tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path) -> None:
    table = replace(table, float_layers=("head", "block.1"))
    after = initializers(quantize_bundle(tiny_bundle, tmp_path / "out", table))
    before = initializers(tiny_bundle)
    kept = [name for name in before if name.startswith(("head.", "encoder.layers.1."))]
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name])
    assert not [name for name in after if name.startswith("head.input")]
    assert "encoder.layers.0.attention.q_proj.weight_quantized" in after


def test_with_every_layer_float_the_logits_are_the_same(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    table = replace(table, tensors={}, float_layers=tiny_bundle.spec.layer_names)
    bundle = quantize_bundle(tiny_bundle, tmp_path / "out", table)
    np.testing.assert_array_equal(logits_of(bundle), logits_of(tiny_bundle))


def test_given_rounding_is_used_and_named(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    levels = np.zeros(initializers(tiny_bundle)["head.weight"].shape, np.int8)
    steps: list[tuple[int, int]] = []
    bundle = quantize_bundle(
        tiny_bundle,
        tmp_path / "out",
        table,
        QdqOptions(rounded_weights={"head.weight": levels}),
        on_step=lambda *step: steps.append(step),
    )
    np.testing.assert_array_equal(initializers(bundle)["head.weight_quantized"], levels)
    assert bundle.made_from["weight_rounding"] == "given"
    assert steps == [(step, 22) for step in range(1, 23)]


def test_weights_beside_the_graph_are_read_and_written(
    tiny_bundle: Bundle,
    table: ScaleTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = logits_of(quantize_bundle(tiny_bundle, tmp_path / "expected", table))
    folder = tmp_path / "float"
    folder.mkdir()
    proto = onnx.load(str(tiny_bundle.only_graph.model_path))
    onnx.save(
        proto,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    for name in tiny_bundle.files:
        if name != "model.onnx":
            (folder / name).write_bytes((tiny_bundle.folder / name).read_bytes())
    outside = replace(tiny_bundle, folder=folder)

    inside = quantize_bundle(outside, tmp_path / "inside", table)
    assert "model.onnx.data" not in inside.files
    np.testing.assert_array_equal(logits_of(inside), expected)

    monkeypatch.setattr(onnx_files, "_EXTERNAL_ABOVE_BYTES", 1000)
    beside = quantize_bundle(outside, tmp_path / "beside", table)
    assert "model.onnx.data" in beside.files
    np.testing.assert_array_equal(logits_of(beside), expected)


@pytest.mark.parametrize("variant", ["wavlm-group", "data2vec"])
def test_other_architectures_quantize_and_run(
    variant: str, shared: SharedArtifacts, tmp_path: Path
) -> None:
    bundle = shared.bundle(variant)
    exact = logits_of(bundle)
    table = table_of(bundle, largest_values(bundle), Bits())
    quantized = quantize_bundle(bundle, tmp_path / "out", table)
    graph = onnx.load(str(quantized.only_graph.model_path)).graph
    floats = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert node.input[1] not in floats, node.name
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {node.input[0] for node in pairs} == set(bundle.spec.layers)
    assert 0 < np.abs(logits_of(quantized) - exact).max() < 0.1 * np.abs(exact).max()


def without(name: str, table: ScaleTable) -> ScaleTable:
    return replace(table, tensors={key: row for key, row in table.tensors.items() if key != name})


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    levels = {"head.weight": np.zeros((3, 3), np.int8)}
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ScaleError, "made for model 00000000", {"table": replace(table, model_sha256="0" * 64)}),
        (ScaleError, r"no scale for head\.input", {"table": without("head.input", table)}),
        (ScaleError, "has no block.9", {"table": replace(table, float_layers=("block.9",))}),
        (
            OptionError,
            "weight: was given rounded levels",
            {"options": QdqOptions(rounded_weights=levels)},
        ),
        (
            OptionError,
            r"scales\.json: the bundle has",
            {"options": QdqOptions(extra_files={"scales.json": b""})},
        ),
        (
            FileNotFoundError,
            "gone",
            {"options": QdqOptions(extra_files={"log": tmp_path / "gone"})},
        ),
        (
            OptionError,
            "TensorRT takes only zero point 0",
            {"table": replace(table, symmetric=False), "options": QdqOptions(QdqFormat.S8)},
        ),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            quantize_bundle(tiny_bundle, tmp_path / "out", **{"table": table, **options})
        assert list(tmp_path.iterdir()) == []


def test_a_quantized_bundle_is_not_quantized_again(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    bundle = quantize_bundle(tiny_bundle, tmp_path / "out", table)
    with pytest.raises(BundleError, match=r"already quantized \(w8a8\); give the float bundle"):
        quantize_bundle(bundle, tmp_path / "again", table)


def test_outputs_are_replaced_only_with_force_and_never_the_float_bundle(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    out = quantize_bundle(tiny_bundle, tmp_path / "out", table).folder
    with pytest.raises(OutputExistsError, match="already there"):
        quantize_bundle(tiny_bundle, out, table)
    with pytest.raises(OptionError, match="is the float bundle itself"):
        quantize_bundle(tiny_bundle, tiny_bundle.folder, table, force=True)
    again = quantize_bundle(tiny_bundle, out, replace(table, float_layers=("head",)), force=True)
    assert read_scales(again.folder / "scales.json").float_layers == ("head",)


def test_a_missing_package_is_named_before_any_work(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'speechquant\[quantize\]'"):
        quantize_bundle(tiny_bundle, tmp_path / "out", table)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_of_the_zoo_shrinks_to_about_a_quarter(
    shared: SharedArtifacts, tmp_path: Path
) -> None:
    bundle = shared.zoo_bundle("hubert")
    table = table_of(bundle, largest_values(bundle), Bits())
    quantized = quantize_bundle(bundle, tmp_path / "out", table)
    assert quantized.size_bytes < 0.27 * bundle.size_bytes
