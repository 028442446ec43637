from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechquant.exporter.tied_embedding import share_embedding

TOKENS, SIZE = 7, 5
TABLE = np.random.default_rng(0).normal(size=(TOKENS, SIZE)).astype(np.float32)


def graph_with(head: NDArray[np.float32]) -> ir.Model:
    """Look tokens up in a table, move them, and multiply them by a head."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["embedding"], axis=0),
            helper.make_node("Add", ["embedding", "position"], ["states"]),
            helper.make_node("MatMul", ["states", "head"], ["logits"]),
        ],
        "tied",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, head.shape[1]])],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.linspace(0, 1, SIZE, dtype=np.float32), "position"),
            numpy_helper.from_array(head, "head"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model) -> NDArray[np.float32]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    tokens = np.array([[0, 3], [4, 6], [2, 2]], np.int64)
    return np.asarray(session.run(None, {"tokens": tokens})[0])


def test_a_tied_embedding_is_the_heads_matrix() -> None:
    model = graph_with(np.ascontiguousarray(TABLE.T))
    expected = run(model)
    share_embedding(model)
    assert set(model.graph.initializers) == {"head", "position"}
    assert [node.op_type for node in model.graph] == ["Gather", "Transpose", "Add", "MatMul"]
    assert np.array_equal(run(model), expected)
    embedding = next(node for node in model.graph if node.op_type == "Add").inputs[0]
    assert embedding is not None and embedding.name == "embedding"


@pytest.mark.parametrize("untied", ["one number", "one token less"])
def test_any_other_embedding_stays_a_table(untied: str) -> None:
    head = np.array(TABLE.T)
    if untied == "one number":
        head[2, 3] += 1e-6
    else:
        head = head[:, :-1]
    model = graph_with(np.ascontiguousarray(head))
    share_embedding(model)
    assert set(model.graph.initializers) == {"table", "head", "position"}
    assert [node.op_type for node in model.graph] == ["Gather", "Add", "MatMul"]
