"""The graph that TensorRT is given, of a model with a group-norm front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quantized import w8a8
from shared_artifacts import SharedArtifacts

from speechquant.benchmarks.papers.narrow_rest import emulate_float16
from speechquant.core.bundles import Bundle
from speechquant.engines.build_options import BuildOptions, GraphToBuild
from speechquant.engines.ctc.graphs_to_build import ctc_graphs
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.onnxruntime.session import (
    OnnxRuntimeSession,
    compute_as_spelled,
    session_options,
)
from speechquant.engines.tensorrt.graph import tensorrt_graph


@pytest.fixture(scope="module")
def floats(shared: SharedArtifacts) -> Bundle:
    return shared.bundle("wav2vec2-group")


@pytest.fixture(scope="module", params=list(QdqFormat))
def quantized(
    floats: Bundle, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return w8a8(floats, tmp_path_factory.mktemp("group") / "w8a8", request.param)


def to_build(bundle: Bundle) -> GraphToBuild:
    return ctc_graphs(bundle, BuildOptions("tensorrt-rtx"))["model"]


def logits(graph: Path | ir.Model) -> NDArray[np.float32]:
    noise = np.random.default_rng(2).standard_normal((2, 8000)).astype(np.float32)
    feeds = {"input_values": noise, "input_lengths": np.array([8000, 5000], np.int64)}
    source = graph if isinstance(graph, Path) else ir.to_proto(graph).SerializeToString()
    options = session_options(1)
    compute_as_spelled(options)
    with OnnxRuntimeSession(source, options) as session:
        return session.run(feeds)["logits"]


def test_with_a_rest_in_float32_the_numbers_are_those_of_the_bundle(quantized: Bundle) -> None:
    graph = tensorrt_graph(to_build(quantized), "fp32", strongly_typed=True)
    assert graph.float32_nodes == ()
    # The integers are the same; kernels for uint8 and for int8 round their sums differently.
    assert np.abs(logits(graph.model) - logits(quantized.only_graph.model_path)).max() < 1e-3


def test_all_integers_are_int8_around_zero(quantized: Bundle) -> None:
    model = tensorrt_graph(to_build(quantized), "fp16", strongly_typed=True).model
    points = [
        node.inputs[2]
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert len(points) == 2 * 22 - 2 * 2 * 2 + 22  # Q, K and V of 2 blocks share a pair
    for point in points:
        assert point is not None and point.const_value is not None
        assert point.dtype == ir.DataType.INT8
        assert not point.const_value.numpy().any()


@pytest.mark.parametrize("float_type", ["fp16", "bf16"])
def test_a_narrow_graph_is_valid_onnx(floats: Bundle, float_type: str) -> None:
    graph = tensorrt_graph(to_build(floats), float_type, strongly_typed=True)
    proto = ir.to_proto(graph.model)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {
        put.name: put.type.tensor_type.elem_type
        for put in (*proto.graph.input, *proto.graph.output)
    }
    assert kinds == {
        "input_values": onnx.TensorProto.FLOAT,
        "input_lengths": onnx.TensorProto.INT64,
        "logits": onnx.TensorProto.FLOAT,
    }


def test_the_statistics_of_a_group_norm_stay_in_float32(floats: Bundle) -> None:
    graph = tensorrt_graph(to_build(floats), "fp16", strongly_typed=True)
    kept = set(graph.float32_nodes)
    operators = [node.op_type for node in graph.model.graph if node.name in kept]
    # Mean, mean of squares, their difference, its root, and the scale and shift made of them.
    assert operators.count("ReduceMean") == 2
    assert {"Sqrt", "Reciprocal", "Clip"} <= set(operators)
    assert not {"MatMul", "Conv", "Softmax", "LayerNormalization", "Gelu"} & set(operators)
    types = [node.outputs[0].dtype for node in graph.model.graph if node.name in kept]
    assert set(types) == {ir.DataType.FLOAT}


def test_in_float16_the_logits_are_those_of_float32_to_its_digits(floats: Bundle) -> None:
    graph = tensorrt_graph(to_build(floats), "fp16", strongly_typed=True)
    emulate_float16(graph.model)
    expected = logits(floats.only_graph.model_path)
    difference = np.abs(logits(graph.model) - expected).max() / np.abs(expected).max()
    # 11 bits are 5e-4, and errors of some twenty layers add up; more than float32's is there.
    assert 1e-5 < difference < 1e-2


def test_for_tensorrt_before_10(floats: Bundle) -> None:
    graph = tensorrt_graph(to_build(floats), "fp16", strongly_typed=False)
    proto = ir.to_proto(graph.model)
    assert proto.opset_import[0].version == 17
    onnx.checker.check_model(proto, full_check=True)
    assert not {"Gelu", "LayerNormalization"} & {node.op_type for node in proto.graph.node}
    assert not [
        n.name for n in proto.graph.node if n.op_type.startswith("Reduce") and len(n.input) > 1
    ]
    assert np.abs(logits(graph.model) - logits(floats.only_graph.model_path)).max() < 1e-4
    types = {node.outputs[0].dtype for node in graph.model.graph}
    assert ir.DataType.FLOAT16 not in types
