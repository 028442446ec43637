from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechquant.core.errors import BundleError
from speechquant.engines.graphs.embeddings import dequantize_embeddings, quantize_embeddings
from speechquant.engines.graphs.qdq import quantize_weights

ROWS, SIZE = 7, 5


def table() -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(ROWS, SIZE)).astype(np.float32)
    values[3] = 0.0  # a token that was never trained
    values[4] *= 1000.0
    return values


def graph_with(values: NDArray[np.float32]) -> ir.Model:
    """Look tokens up in a table, and constants in another, as relative positions are."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedding"], axis=0),
        helper.make_node("Gather", ["biases", "places"], ["bias"], axis=0),
        helper.make_node("Add", ["embedding", "bias"], ["sum"]),
    ]
    constants = {
        "table": values,
        "biases": np.linspace(0.0, 1.0, 2 * SIZE, dtype=np.float32).reshape(2, SIZE),
        "places": np.array([1, 0], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "lookups",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 2, SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def run(model: ir.Model) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    tokens = np.array([[0, 3], [4, 6], [2, 2]], np.int64)
    return np.asarray(session.run(None, {"tokens": tokens})[0])


def constants(model: ir.Model) -> dict[str, str]:
    return {name: str(value.dtype) for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize(("bits", "kept_as"), [(8, "INT8"), (4, "INT8"), (16, "INT16")])
def test_rows_are_rounded_each_by_its_own_scale(bits: int, kept_as: str) -> None:
    values = table()
    largest = 2 ** (max(bits, 8) - 1) - 1  # narrower ones would be stored in as many bytes
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(largest)
    scales[3] = 1.0
    by_hand = graph_with(np.rint(values / scales) * scales)
    model = graph_with(values)
    quantize_embeddings(model, bits)
    assert constants(model)["table_quantized"] == kept_as
    assert "table" not in constants(model)
    assert constants(model)["biases"] == "FLOAT"  # no input is looked up in it
    assert np.array_equal(run(model), run(by_hand))
    assert [output.name for output in model.graph.outputs] == ["sum"]


def test_undone_it_is_one_table_of_floats_again() -> None:
    model = graph_with(table())
    quantize_embeddings(model, 8)
    expected = run(model)
    dequantize_embeddings(model)
    assert [node.op_type for node in model.graph] == ["Gather", "Gather", "Add"]
    assert set(constants(model).values()) == {"FLOAT", "INT64"}
    assert np.array_equal(run(model), expected)


def test_a_table_that_is_not_finite() -> None:
    values = table()
    values[1, 1] = np.nan
    with pytest.raises(BundleError, match="table: holds values that are not finite"):
        quantize_embeddings(graph_with(values), 8)


def tied(values: NDArray[np.float32], *, copies: int) -> ir.Model:
    """Look tokens up in a matrix and multiply by it; of two copies the one looked up in has rows."""
    head = np.ascontiguousarray(values.T)
    nodes = [
        helper.make_node("Gather", ["head", "tokens"], ["columns"], axis=1),
        helper.make_node("Transpose", ["columns"], ["embedding"], perm=[1, 2, 0]),
        helper.make_node("MatMul", ["embedding", "head"], ["logits"]),
    ]
    stored = [numpy_helper.from_array(head, "head")]
    if copies == 2:
        nodes[:2] = [helper.make_node("Gather", ["table", "tokens"], ["embedding"], axis=0)]
        stored += [numpy_helper.from_array(values, "table")]
    shapes = {"embedding": SIZE, "logits": ROWS}
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 2])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, size])
            for name, size in shapes.items()
        ],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def quantize_both(model: ir.Model, bits: int, rounded: NDArray[np.int8] | None = None) -> None:
    heads = [node for node in model.graph if node.op_type == "MatMul"]
    quantize_weights(model, heads, bits, rounded=None if rounded is None else {"head": rounded})
    quantize_embeddings(model, bits)


def outputs(model: ir.Model) -> list[NDArray[np.float32]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    tokens = np.array([[0, 3], [4, 6], [2, 2]], np.int64)
    return [np.asarray(output) for output in session.run(None, {"tokens": tokens})]


def matrices(model: ir.Model) -> dict[str, str]:
    return {
        name: str(value.dtype)
        for name, value in model.graph.initializers.items()
        if value.shape is not None and len(value.shape) == 2
    }


@pytest.mark.parametrize(
    ("bits", "stored"),
    [
        (8, {"head_quantized": "INT8"}),
        (16, {"head_quantized": "INT16"}),
        # The head's own levels are too coarse for an embedding, which keeps its 8 bits.
        (4, {"head_quantized": "INT8", "head_float_quantized": "INT8"}),
    ],
)
def test_of_a_tied_head_both_read_the_same_integers(bits: int, stored: dict[str, str]) -> None:
    once, twice = tied(table(), copies=1), tied(table(), copies=2)
    for model in (once, twice):
        quantize_both(model, bits)
    assert matrices(once) == stored
    for mine, expected in zip(outputs(once), outputs(twice), strict=True):
        assert np.array_equal(mine, expected)


def test_levels_chosen_for_the_head_are_not_the_embeddings() -> None:
    once, twice = tied(table(), copies=1), tied(table(), copies=2)
    chosen = np.full((SIZE, ROWS), 3, np.int8)
    for model in (once, twice):
        quantize_both(model, 8, chosen)
    assert set(matrices(once)) == {"head_quantized", "head_float_quantized"}
    for mine, expected in zip(outputs(once), outputs(twice), strict=True):
        assert np.array_equal(mine, expected)


def test_the_embedding_of_a_head_in_float_is_float() -> None:
    model = tied(table(), copies=1)
    quantize_embeddings(model, 8)
    assert matrices(model) == {"head": "FLOAT"}
    embedding, _ = outputs(model)
    assert np.array_equal(embedding[0, 0], table()[0])


def test_undone_a_tied_head_keeps_its_integers() -> None:
    model = tied(table(), copies=1)
    quantize_both(model, 8)
    expected = outputs(model)
    dequantize_embeddings(model)
    assert sorted(matrices(model).values()) == ["FLOAT", "INT8"]
    lookup = next(node for node in model.graph if node.op_type == "Gather")
    assert lookup.inputs[0] is not None and lookup.inputs[0].dtype == ir.DataType.FLOAT
    for mine, again in zip(outputs(model), expected, strict=True):
        assert np.array_equal(mine, again)
