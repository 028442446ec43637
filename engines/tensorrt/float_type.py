"""What stays float in a graph in a narrower type: casts between it and what stays in float32.

QuantizeLinear and DequantizeLinear stay in float32, so that every scale is the one calibrated: in
float16 a scale has 11 bits, and below 6e-5 fewer still. The cast between them and the others
costs no pass over memory, since TensorRT computes it in the kernel that quantizes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

# What quantization computes in, and what makes floats from no float or from an attribute.
_ALWAYS_FLOAT32 = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape", "Range"}
)
# What reads a float only to say something else about it.
_READS_ANY = frozenset({"Shape", "Size"})


def cast_floats(
    model: ir.Model,
    float_type: ir.DataType,
    float32_nodes: Collection[str],
    narrow: Collection[str] = (),
) -> None:
    """Let every node compute in `float_type` except those named, and Q/DQ.

    Inputs and outputs stay, but for those in `narrow`, which become `float_type`.
    """
    import onnx_ir as ir

    casts = _Casts(model, float_type)
    for value in model.graph.inputs:
        if value.name in narrow:
            value.type = ir.TensorType(float_type)
    kept = frozenset(float32_nodes)
    outputs = {id(value) for value in model.graph.outputs}
    for node in list(model.graph):
        if node.op_type in _READS_ANY:
            continue
        if node.op_type in _ALWAYS_FLOAT32 or node.name in kept:
            casts.feed(node, casts.wide)
        else:
            casts.feed(node, float_type)
            _retype(node, casts.wide, float_type)
    for index, value in enumerate(model.graph.outputs):
        wanted = float_type if value.name in narrow else casts.wide
        if (
            value.dtype in (float_type, casts.wide)
            and value.dtype != wanted
            and id(value) in outputs
        ):
            model.graph.outputs[index] = casts.output(value, wanted)
    _forget_unread_constants(model)


def _forget_unread_constants(model: ir.Model) -> None:
    """Drop the float32 constants that nothing reads any more: of a float model, all its weights."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def _retype(node: ir.Node, wide: ir.DataType, float_type: ir.DataType) -> None:
    """Say that what `node` made in float32 it makes in `float_type`."""
    import onnx_ir as ir

    for value in node.outputs:
        if value.dtype == wide:
            value.type = ir.TensorType(float_type)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(float_type))


class _Casts:
    """One cast of each tensor to each type, made where it is first asked for."""

    def __init__(self, model: ir.Model, float_type: ir.DataType) -> None:
        import onnx_ir as ir

        self._graph = model.graph
        self._float_type = float_type
        self._made: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.wide = ir.DataType.FLOAT

    def feed(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Let `node` read its floats in `dtype`."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (self.wide, self._float_type):
                node.replace_input_with(index, self._in(value, dtype, node))

    def output(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return an output of the graph in `dtype` that takes over the name of `value`."""
        import onnx_ir as ir

        name = value.name or ""
        value.name = f"{name}_uncast"
        cast = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        node = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[cast], name=f"{name}_cast")
        self._graph.append(node)
        return cast

    def _in(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = (value.name or "", dtype)
        if key not in self._made:
            make = self._constant if value.is_initializer() else self._node
            self._made[key] = make(value, dtype, reader)
        return self._made[key]

    def _node(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        import onnx_ir as ir

        name = f"{value.name}_{dtype.name.lower()}"
        cast = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        node = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[cast], name=name)
        self._graph.insert_before(reader, node)
        return cast

    def _constant(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        import onnx_ir as ir

        name = f"{value.name}_{dtype.name.lower()}"
        if value.const_value is None:
            return self._node(value, dtype, reader)
        numbers = value.const_value.numpy().astype(dtype.numpy())
        tensor = ir.tensor(np.asarray(numbers), dtype=dtype, name=name)
        constant = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor
        )
        self._graph.register_initializer(constant)
        return constant
