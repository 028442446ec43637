"""What attention multiplies by each other, quantized: by hand, simulated, and for each backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from quantized import table_from_noise, w8a8
from small_graphs import GraphOf, operators, run

from speechquant.core.bundles import Bundle
from speechquant.core.errors import ScaleError
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.engines import open_session, quantize_bundle
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.graphs.qdq import QdqFormat, quantize_attention
from speechquant.engines.onnxruntime.graph import cpu_model
from speechquant.engines.onnxruntime.session import have_exact_products
from speechquant.engines.openvino.plugin import openvino_model
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights

# Two blocks of queries, keys, probabilities and values.
TENSORS, PRODUCTS = 8, 4
SCALES = {"p": 0.02, "v": 0.05}


@pytest.fixture(scope="module")
def table(tiny_bundle: Bundle) -> ScaleTable:
    return table_from_noise(tiny_bundle, attention=True)


@pytest.fixture(scope="module")
def quantized(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return quantize_bundle(tiny_bundle, tmp_path_factory.mktemp("attention") / "w8a8", table)


def products(model: ir.Model) -> list[ir.Node]:
    """The products of two activations."""
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul" and not any(is_weight(value) for value in node.inputs)
    ]


def is_weight(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    levels = value if node is None else node.inputs[0]
    return levels is not None and levels.is_initializer()


def is_quantized(node: ir.Node) -> bool:
    makers = [value.producer() if value else None for value in node.inputs]
    return [maker and maker.op_type for maker in makers] == ["DequantizeLinear"] * 2


@pytest.mark.parametrize("qdq_format", list(QdqFormat))
def test_both_inputs_are_rounded(tiny_bundle: Bundle, qdq_format: QdqFormat) -> None:
    graph = GraphOf()
    graph.add("MatMul", ["p", "v"], "y")
    model = graph.model({"p": [3, 5], "v": [5, 4]}, "y", [3, 4])
    rows = {name: Scale("block.0", scale, 127 * scale) for name, scale in SCALES.items()}
    spec = replace(tiny_bundle.spec, attention=dict.fromkeys(rows, "block.0"))
    quantize_attention(model, spec, ScaleTable("", "max", Bits(), rows), qdq_format)
    rng = np.random.default_rng(0)
    # A little beyond 127 steps, so that something is clipped.
    feeds = {
        name: rng.uniform(-130 * scale, 126 * scale, dims).astype(np.float32)
        for (name, scale), dims in zip(SCALES.items(), [(3, 5), (5, 4)], strict=True)
    }
    rounded = [
        np.clip(np.rint(feeds[name] / np.float32(scale)), -128, 127) * np.float64(np.float32(scale))
        for name, scale in SCALES.items()
    ]
    np.testing.assert_allclose(run(model, feeds), rounded[0] @ rounded[1], atol=2e-5)


def test_a_table_without_it_gives_the_graph_that_there_was_before(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    unnamed = replace(tiny_bundle, spec=replace(tiny_bundle.spec, attention={}))
    before, after = w8a8(unnamed, tmp_path / "before"), w8a8(tiny_bundle, tmp_path / "after")
    assert before.only_graph.model_path.read_bytes() == after.only_graph.model_path.read_bytes()


def test_only_the_products_differ(tiny_bundle: Bundle, quantized: Bundle, tmp_path: Path) -> None:
    plain = ir.load(w8a8(tiny_bundle, tmp_path / "plain").only_graph.model_path)
    model = ir.load(quantized.only_graph.model_path)
    assert [is_quantized(node) for node in products(plain)] == [False] * PRODUCTS
    assert [is_quantized(node) for node in products(model)] == [True] * PRODUCTS
    pair = {"QuantizeLinear": TENSORS, "DequantizeLinear": TENSORS}
    for operator in {*operators(model), *pair}:
        more = operators(model).count(operator) - operators(plain).count(operator)
        assert more == pair.get(operator, 0), operator


def test_the_simulation_rounds_it_too(
    tiny_bundle: Bundle, table: ScaleTable, quantized: Bundle, noise: NDArray[np.float32]
) -> None:
    settings = onnxruntime.SessionOptions()
    have_exact_products(settings)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    real = onnxruntime.InferenceSession(quantized.only_graph.model_path, settings)
    feeds = feeds_of(tiny_bundle.spec, [noise])
    weights = rounded_weights(tiny_bundle.only_graph, table, {})
    weighted = {name: row for name, row in table.tensors.items() if name in tiny_bundle.spec.layers}
    with SimulatedSession(tiny_bundle.only_graph, 1, weights, attention=True) as simulated:
        simulated.use(table)
        logits = simulated.run(feeds)["logits"]
        simulated.use(replace(table, tensors=weighted))
        without = simulated.run(feeds)["logits"]
    np.testing.assert_allclose(logits, real.run(["logits"], feeds)[0], atol=1e-4)
    assert np.abs(logits - without).max() > 1e-3


def test_a_table_names_all_of_it_or_none(tiny_bundle: Bundle, table: ScaleTable) -> None:
    keys = "encoder.layers.1.attention.keys"
    some = {name: row for name, row in table.tensors.items() if name != keys}
    with pytest.raises(ScaleError, match=f"no scale for {keys} of"):
        quantize_bundle(tiny_bundle, "unused", replace(table, tensors=some))


def test_a_block_in_float_keeps_its_products(
    tiny_bundle: Bundle, table: ScaleTable, tmp_path: Path
) -> None:
    rows = {name: row for name, row in table.tensors.items() if row.layer != "block.0"}
    left = replace(table, tensors=rows, float_layers=("block.0",))
    model = ir.load(quantize_bundle(tiny_bundle, tmp_path / "out", left).only_graph.model_path)
    assert [is_quantized(node) for node in products(model)] == [False, False, True, True]


def test_openvino_is_given_every_pair_around_0(quantized: Bundle) -> None:
    model = openvino_model(quantized.only_graph)
    found = products(model)
    assert [is_quantized(node) for node in found] == [True] * PRODUCTS
    types = {value.producer().inputs[0].dtype for node in found for value in node.inputs}  # type: ignore[union-attr]
    assert types == {ir.DataType.INT8}


def test_onnxruntime_drops_none_of_it(quantized: Bundle, noise: NDArray[np.float32]) -> None:
    model = cpu_model(quantized.only_graph)
    assert [is_quantized(node) for node in products(model)] == [True] * PRODUCTS
    assert "MultiHeadAttention" not in operators(model)
    settings = onnxruntime.SessionOptions()
    have_exact_products(settings)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(quantized.only_graph.model_path, settings)
    feeds = feeds_of(quantized.spec, [noise])
    with open_session(quantized, provider="cpu", threads=1) as session:
        logits = session.run(feeds)["logits"]
    expected = plain.run(["logits"], feeds)[0]
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
