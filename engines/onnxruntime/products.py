"""Products of quantized tensors as one integer kernel of ONNX Runtime, scale and bias included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.weights import Levels
from speechquant.engines.graphs.writer import (
    MICROSOFT,
    GraphWriter,
    constant_of,
    other_input,
    replace_value,
)

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class QuantizedActivation:
    """The unsigned levels of an activation, and the scale and the zero point they are read with."""

    levels: ir.Value
    scale: ir.Value
    zero_point: ir.Value


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """The levels of a weight and the scale of each of its channels, which lie along `axis`."""

    levels: Levels
    scales: NDArray[np.float32]
    axis: int


def quantized_activation(value: ir.Value | None) -> QuantizedActivation | None:
    """Return what `value` is dequantized from, None where that is not of 8 unsigned bits."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    levels, scale, zero_point = node.inputs[:3]
    if levels is None or scale is None or levels.const_value is not None:
        return None
    point = constant_of(zero_point)
    if zero_point is None or point is None or point.dtype != np.uint8 or point.ndim:
        return None
    return QuantizedActivation(levels, scale, zero_point)


def quantized_constant(value: ir.Value | None) -> QuantizedConstant | None:
    """Return the weight that `value` is dequantized from, None where that is not of 8 bits."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    levels, scales = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    if levels is None or scales is None or levels.dtype != np.int8 or scales.ndim != 1:
        return None
    zeros = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if zeros is not None and zeros.any():
        return None
    return QuantizedConstant(levels, scales, node.attributes.get_int("axis", 1))


def integer_product(
    writer: GraphWriter,
    activation: QuantizedActivation,
    levels: NDArray[np.signedinteger[Any]],
    scales: NDArray[np.float32],
    bias: ir.Value | None = None,
) -> ir.Value:
    """Add activation times weight, [..., inputs] by [inputs, outputs], and return the floats."""
    return writer.add(
        "MatMulIntegerToFloat",
        activation.levels,
        writer.constant(np.ascontiguousarray(levels)),
        activation.scale,
        writer.constant(scales),
        activation.zero_point,
        writer.constant(np.zeros(scales.shape, np.int8)),
        *([] if bias is None else [bias]),
        domain=MICROSOFT,
    )


def fuse_products(model: ir.Model) -> int:
    """Replace each MatMul of quantized inputs, and its bias, by one kernel; return how many.

    ONNX Runtime fuses such a MatMul itself, but adds the bias in a pass of its own.
    """
    fused = 0
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        activation = quantized_activation(node.inputs[0])
        weight = quantized_constant(node.inputs[1])
        if activation is None or weight is None or weight.levels.ndim != 2 or weight.axis != 1:
            continue
        last, bias = _bias_added(node, len(weight.scales))
        writer = GraphWriter(model, before=last)
        product = integer_product(writer, activation, weight.levels, weight.scales, bias)
        replace_value(model, last.outputs[0], product)
        fused += 1
    return fused


def _bias_added(node: ir.Node, channels: int) -> tuple[ir.Node, ir.Value | None]:
    """Return the Add that follows `node` and the bias it adds, else the node itself."""
    users = node.outputs[0].uses()
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return node, None
    add = next(iter(users)).node
    if add.op_type != "Add":
        return node, None
    added = other_input(add, node.outputs[0])
    bias = constant_of(added)
    return (node, None) if bias is None or bias.shape != (channels,) else (add, added)
