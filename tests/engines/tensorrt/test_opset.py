"""The spelling for TensorRT before 10, against ONNX Runtime on the graph as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.tensorrt.opset import spell_in_opset_17


def logits(graph: Path | bytes) -> NDArray[np.float32]:
    noise = np.random.default_rng(2).standard_normal((2, 8000)).astype(np.float32)
    feeds = {"input_values": noise, "input_lengths": np.array([8000, 5000], np.int64)}
    with OnnxRuntimeSession(graph, session_options(1)) as session:
        return session.run(feeds)["logits"]


def check(bundle: Bundle) -> None:
    model = ir.load(bundle.only_graph.model_path)
    spell_in_opset_17(model)
    operators = {node.op_type for node in model.graph}
    assert not {"Gelu", "LayerNormalization"} & operators
    assert not [
        node.name
        for node in model.graph
        if node.op_type.startswith("Reduce") and len(node.inputs) > 1
    ]
    proto = ir.to_proto(model)
    assert proto.opset_import[0].version == 17
    onnx.checker.check_model(proto, full_check=True)
    difference = np.abs(
        logits(proto.SerializeToString()) - logits(bundle.only_graph.model_path)
    ).max()
    assert difference < 1e-4


def test_a_layer_norm_front_end(tiny_bundle: Bundle) -> None:
    check(tiny_bundle)


def test_what_opset_17_cannot_say() -> None:
    x, y = (ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT)) for n in "xy")
    node = ir.node("Gelu", [x], {"approximate": "tanh"}, outputs=[y], name="gelu")
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(EngineError, match="gelu: TensorRT before 10 has no approximate Gelu"):
        spell_in_opset_17(model)
