"""A graph whose rest is in float16, computed in float32 with every result rounded as float16 is.

ONNX Runtime's CPU provider computes float16 in float32 and rounds nothing, so running such a graph
on it says nothing about what a GPU would make of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

# x times this, less what is beyond x, leaves the 11 upper bits of a float32 (Veltkamp's splitting).
_SPLITTER = np.float32(2**13 + 1)


def emulate_float16(model: ir.Model) -> None:
    """Round in float32 what the graph computes in float16, to its 11 bits.

    Float16's range is not emulated: neither its infinities nor its coarser steps below 6e-5.
    """
    import onnx_ir as ir

    half, wide = ir.DataType.FLOAT16, ir.TensorType(ir.DataType.FLOAT)
    splitter = _splitter(model)
    for value in model.graph.initializers.values():
        if value.dtype == half and value.const_value is not None:
            numbers = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(numbers, name=value.name)
            value.type = wide
    for node in list(model.graph):
        for output in node.outputs:
            if output.dtype == half:
                output.type = wide
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
                _round(model, node, output, splitter)


def _splitter(model: ir.Model) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(np.array(_SPLITTER), name="float16_splitter")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _round(model: ir.Model, node: ir.Node, output: ir.Value, splitter: ir.Value) -> None:
    import onnx_ir as ir

    readers = list(output.uses())
    split = ir.node("Mul", [output, splitter])
    beyond = ir.node("Sub", [split.outputs[0], output])
    rounded = ir.node("Sub", [split.outputs[0], beyond.outputs[0]])
    for part in (split, beyond, rounded):
        part.outputs[0].type, part.outputs[0].shape = output.type, output.shape
    model.graph.insert_after(node, [split, beyond, rounded])
    for reader, index in readers:
        reader.replace_input_with(index, rounded.outputs[0])
