"""The group norm of a first convolution, without a pass over that convolution's output.

The output is the largest tensor of the whole graph, but each of its values is a product of a few
inputs. So the mean and the mean square of a channel follow from the means and the mean products of
these, and the norm itself is a change of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.engines.graphs.writer import GraphWriter, constant_of, other_input, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

# Products of pairs of inputs: beyond this they cost more than they save.
_MOST_INPUTS = 32
_TIME_AXIS = 1


@dataclass(frozen=True, eq=False)
class _NormedProduct:
    """An integer product and what reads it: two means, and a scaling of each channel."""

    product: ir.Node
    weight: NDArray[np.float32]  # [inputs, channels]; a last input of one carries the bias
    means: tuple[ir.Node, ...]
    mean_squares: tuple[ir.Node, ...]
    scale: ir.Value
    shift: ir.Value
    output: ir.Node


def fold_norms(model: ir.Model) -> int:
    """Rewrite each narrow integer product that is normalised over time; return how many."""
    found = [
        normed
        for node in model.graph
        if node.op_type == "MatMulIntegerToFloat" and (normed := _normed(node)) is not None
    ]
    for normed in found:
        _rewrite(model, normed)
    return len(found)


def _rewrite(model: ir.Model, normed: _NormedProduct) -> None:
    writer = GraphWriter(model, before=normed.product)
    inputs, weight = _inputs_and_one(writer, normed.product), writer.constant(normed.weight)
    time = writer.constant(np.array([_TIME_AXIS]))
    mean = writer.add("MatMul", writer.add("ReduceMean", inputs, time, keepdims=1), weight)
    for node in normed.means:
        replace_value(model, node.outputs[0], mean)
    mean_square = _mean_square(writer, inputs, weight)
    for node in normed.mean_squares:
        replace_value(model, node.outputs[0], mean_square)
    writer = GraphWriter(model, before=normed.output)
    only_bias = np.zeros((len(normed.weight), 1), np.float32)
    only_bias[-1] = 1
    shift = writer.add("Mul", writer.constant(only_bias), normed.shift)
    scaled = writer.add("Add", writer.add("Mul", weight, normed.scale), shift)
    replace_value(model, normed.output.outputs[0], writer.add("MatMul", inputs, scaled))


def _inputs_and_one(writer: GraphWriter, product: ir.Node) -> ir.Value:
    """Return the levels as floats around zero, [batch, time, inputs + 1], the last of them one.

    Levels are small whole numbers, so the float product of them is as exact as the integer one.
    """
    import onnx_ir as ir

    to = int(ir.DataType.FLOAT)
    levels, zero_point = product.inputs[0], product.inputs[4]
    centred = writer.add(
        "Sub", writer.add("Cast", levels, to=to), writer.add("Cast", zero_point, to=to)
    )
    pads = writer.constant(np.array([0, 0, 0, 0, 0, 1]))
    return writer.add("Pad", centred, pads, writer.constant(np.array(1, np.float32)))


def _mean_square(writer: GraphWriter, inputs: ir.Value, weight: ir.Value) -> ir.Value:
    """Return sum_kl w_k w_l mean(x_k x_l) of each channel."""
    import onnx_ir as ir

    turned = writer.add("Transpose", inputs, perm=[0, 2, 1])
    length = writer.add("Shape", inputs, start=1, end=2)
    count = writer.add("Cast", length, to=int(ir.DataType.FLOAT))
    mean_products = writer.add("Div", writer.add("MatMul", turned, inputs), count)
    weighted = writer.add("Mul", writer.add("MatMul", mean_products, weight), weight)
    return writer.add("ReduceSum", weighted, writer.constant(np.array([1])), keepdims=1)


def _normed(product: ir.Node) -> _NormedProduct | None:
    weight = _float_weight(product)
    if weight is None:
        return None
    output = product.outputs[0]
    readers = list(dict.fromkeys(user for user, _ in output.uses()))
    squares = [node for node in readers if node.op_type == "Mul" and set(node.inputs) == {output}]
    scalings = [node for node in readers if node.op_type == "Mul" and node not in squares]
    means = [node for node in readers if _is_mean_over_time(node)]
    if not means or len(scalings) != 1 or len(readers) != len(squares) + len(means) + 1:
        return None
    mean_squares = [user for square in squares for user, _ in square.outputs[0].uses()]
    if not mean_squares or not all(map(_is_mean_over_time, mean_squares)):
        return None
    scale = other_input(scalings[0], output)
    added = [user for user, _ in scalings[0].outputs[0].uses()]
    if scale is None or len(added) != 1 or added[0].op_type != "Add":
        return None
    shift = other_input(added[0], scalings[0].outputs[0])
    if shift is None or not all(_descends_from(means, value) for value in (scale, shift)):
        return None
    return _NormedProduct(
        product, weight, tuple(means), tuple(mean_squares), scale, shift, added[0]
    )


def _descends_from(means: Sequence[ir.Node], value: ir.Value) -> bool:
    """Whether `value` is made of means and constants alone, so that it is one for all times."""
    constant = constant_of(value)
    if constant is not None:
        return constant.ndim < 2 or constant.shape[-2] == 1
    node = value.producer()
    if node is None:
        return False
    if node in means or _is_mean_over_time(node):
        return True
    return all(_descends_from(means, given) for given in node.inputs if given is not None)


def _float_weight(product: ir.Node) -> NDArray[np.float32] | None:
    levels, channel_scales = constant_of(product.inputs[1]), constant_of(product.inputs[3])
    scale = constant_of(product.inputs[2])
    if levels is None or channel_scales is None or scale is None or len(levels) > _MOST_INPUTS:
        return None
    bias = np.zeros(levels.shape[1], np.float32)
    if len(product.inputs) > 6:
        given = constant_of(product.inputs[6])
        if given is None:
            return None
        bias = given
    return np.vstack([levels * (channel_scales * scale), bias]).astype(np.float32)


def _is_mean_over_time(node: ir.Node) -> bool:
    axes = constant_of(node.inputs[1]) if node.op_type == "ReduceMean" else None
    keeps_axis = node.attributes.get_int("keepdims", 1) == 1
    return axes is not None and axes.tolist() == [_TIME_AXIS] and keeps_axis
