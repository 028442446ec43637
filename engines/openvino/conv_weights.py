"""The weight of a convolution, as a constant or behind the DequantizeLinear of its levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from speechquant.engines.graphs.writer import GraphWriter, constant_of

if TYPE_CHECKING:
    import onnx_ir as ir


def levels_behind(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear that a convolution reads its weight through."""
    weight = node.inputs[1]
    scaling = None if weight is None else weight.producer()
    return scaling if scaling is not None and scaling.op_type == "DequantizeLinear" else None


def weight_of(node: ir.Node) -> ir.Value | None:
    """Return the initializer that a convolution's weight is, or is dequantized from."""
    scaling = levels_behind(node)
    weight = node.inputs[1] if scaling is None else scaling.inputs[0]
    return weight if constant_of(weight) is not None else None


def replace_weight(model: ir.Model, node: ir.Node, values: NDArray[Any]) -> None:
    """Let a convolution read other values, or other levels with the scales that it has."""
    writer, scaling = GraphWriter(model, before=node), levels_behind(node)
    weight = writer.constant(values)
    if scaling is not None:
        axis = scaling.attributes.get_int("axis", 1)
        weight = writer.add("DequantizeLinear", weight, *scaling.inputs[1:], axis=axis)
    node.replace_input_with(1, weight)
