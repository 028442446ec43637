"""A graph in the operators of opset 17, which is what TensorRT before 10 reads.

Its parser knows no Gelu, before 8.6 no LayerNormalization, and takes the mean over every axis where
the axes are an input and not an attribute.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from speechquant.core.errors import EngineError

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 17
_REDUCTIONS = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSumSquare"})
# Attributes that later opsets added, at values that mean what came before them.
_LATER_ATTRIBUTES = {"Cast": "saturate", "QuantizeLinear": "saturate"}


def spell_in_opset_17(model: ir.Model) -> None:
    """Rewrite what later opsets brought; raises EngineError for what has no spelling there."""
    for node in list(model.graph):
        if node.op_type == "Gelu":
            _replace(model, node, _gelu(model, node))
        elif node.op_type == "LayerNormalization":
            _replace(model, node, _layer_norm(model, node))
        elif node.op_type in _REDUCTIONS:
            _move_axes(node)
        node.attributes.pop(_LATER_ATTRIBUTES.get(node.op_type, ""), None)
    model.graph.opset_imports[""] = OPSET


class _Chain:
    """Nodes that follow one another in place of `node`, each with the shape it is given."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.nodes: list[ir.Node] = []

    def add(
        self, operator: str, inputs: list[ir.Value], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Append a node and return its output."""
        import onnx_ir as ir

        name = f"{self.node.name}_{len(self.nodes)}"
        output = ir.Value(name=name, type=self.node.outputs[0].type)
        node = ir.node(operator, inputs, attributes or {}, outputs=[output], name=name)
        self.nodes.append(node)
        return output

    def constant(self, number: float) -> ir.Value:
        """Return a scalar of the graph."""
        import onnx_ir as ir

        name = f"{self.node.name}_constant_{number:.9g}"
        tensor = ir.tensor(np.array(number, np.float32), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value


def _replace(model: ir.Model, node: ir.Node, chain: _Chain) -> None:
    import onnx_ir as ir

    old, new = node.outputs[0], chain.nodes[-1].outputs[0]
    new.shape = old.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], chain.nodes, [old], [new])


def _gelu(model: ir.Model, node: ir.Node) -> _Chain:
    if node.attributes.get_string("approximate", "none") != "none":
        raise EngineError(
            f"{node.name}: TensorRT before 10 has no approximate Gelu; build with 10 or later"
        )
    chain, values = _Chain(model, node), _present(node)
    error = chain.add("Erf", [chain.add("Div", [values[0], chain.constant(math.sqrt(2.0))])])
    both = chain.add("Mul", [values[0], chain.add("Add", [error, chain.constant(1.0)])])
    chain.add("Mul", [both, chain.constant(0.5)])
    return chain


def _layer_norm(model: ir.Model, node: ir.Node) -> _Chain:
    chain, values = _Chain(model, node), _present(node)
    if node.attributes.get_int("axis", -1) != -1:
        raise EngineError(f"{node.name}: a layer norm over several axes; build with TensorRT 10")
    over_last = {"axes": [-1], "keepdims": 1}
    centred = chain.add("Sub", [values[0], chain.add("ReduceMean", [values[0]], over_last)])
    squares = chain.add("Mul", [centred, centred])
    variance = chain.add("ReduceMean", [squares], over_last)
    epsilon = chain.constant(node.attributes.get_float("epsilon", 1e-5))
    deviation = chain.add("Sqrt", [chain.add("Add", [variance, epsilon])])
    scaled = chain.add("Mul", [chain.add("Div", [centred, deviation]), values[1]])
    if len(values) > 2:
        chain.add("Add", [scaled, values[2]])
    return chain


def _move_axes(node: ir.Node) -> None:
    import onnx_ir as ir

    values = _present(node)
    if len(values) < 2:
        return
    axes = values[1].const_value
    if axes is None:
        raise EngineError(f"{node.name}: axes that are computed; build with TensorRT 10 or later")
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.numpy()])
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]
