"""Small quantized graphs built in code, and running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechquant.core.processor import read_processor
from speechquant.engines.onnxruntime.session import have_exact_products

Arrays = dict[str, NDArray[Any]]


class GraphOf:
    """Collects the nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def activation(self, source: str, scale: float, zero_point: int = 128) -> str:
        """Q and DQ on `source`."""
        pair = [
            self.constant(f"{source}_scale", np.float32(scale)),
            self.constant(f"{source}_zero_point", np.uint8(zero_point)),
        ]
        levels = self.add("QuantizeLinear", [source, *pair], f"{source}_quantized")
        return self.add("DequantizeLinear", [levels, *pair], f"{source}_dequantized")

    def weight(self, name: str, levels: NDArray[np.int8], scales: Any, axis: int) -> str:
        inputs = [
            self.constant(f"{name}_quantized", levels),
            self.constant(f"{name}_scale", np.asarray(scales, np.float32)),
            self.constant(f"{name}_zero_point", np.zeros(len(scales), np.int8)),
        ]
        return self.add("DequantizeLinear", inputs, name, axis=axis)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        output: str,
        output_dims: Sequence[int | str | None],
    ) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_dims)],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, feeds: Arrays) -> NDArray[Any]:
    """Return the only output, computed node by node as the graph is spelled, but for old processors.

    Without VNNI products of bytes are exact in optimised graphs alone.
    """
    settings = onnxruntime.SessionOptions()
    have_exact_products(settings)
    if read_processor().sums_byte_products_exactly:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    output: NDArray[Any] = session.run(None, feeds)[0]
    return output


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
