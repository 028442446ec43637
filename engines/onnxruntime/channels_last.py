"""The convolutional part of a graph with the channels last, as integer products want it.

Each tensor [batch, channels, time] of the graph gets a twin [batch, time, channels], from the first
convolution on to whatever knows no twin. Transposes between the two orders vanish on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from speechquant.engines.graphs.writer import GraphWriter, constant_of
from speechquant.engines.onnxruntime.convolutions import convolution_product
from speechquant.engines.onnxruntime.products import quantized_activation

if TYPE_CHECKING:
    import onnx_ir as ir

_SWAPPED = (0, 2, 1)
# What works value by value, with scalars or one value a channel beside it.
_ELEMENTWISE = frozenset(
    {
        "Add", "Clip", "DequantizeLinear", "Div", "Gelu", "Mul", "QuantizeLinear", "Reciprocal",
        "Sqrt", "Sub",
    }
)  # fmt: skip


def put_channels_last(model: ir.Model) -> int:
    """Turn quantized convolutions into integer products over twins; return how many."""
    return _Twins(model).make()


class _Twins:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._twins: dict[ir.Value, ir.Value] = {}
        # Whose original must not be used any more: it hangs on a convolution that was replaced.
        self._replaced: set[ir.Value] = set()
        self._convolutions = 0

    def make(self) -> int:
        for node in list(self._model.graph):
            twin = self._twin_of(node)
            if twin is None:
                self._restore_inputs(node)
                continue
            self._twins[node.outputs[0]] = twin
            if any(value in self._replaced for value in node.inputs):
                self._replaced.add(node.outputs[0])
        return self._convolutions

    def _twin_of(self, node: ir.Node) -> ir.Value | None:
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _SWAPPED:
            return self._swapped(node)
        makers: Mapping[str, Callable[[ir.Node, GraphWriter], ir.Value | None]] = {
            "Conv": self._convolution,
            "ReduceMean": self._mean,
            "Slice": self._slice,
            "Unsqueeze": self._unsqueezed,
        }
        make = makers.get(node.op_type, self._elementwise)
        return make(node, GraphWriter(self._model, before=node))

    def _swapped(self, node: ir.Node) -> ir.Value | None:
        source = node.inputs[0]
        if source is None:
            return None
        if source not in self._twins:
            return source  # [batch, time, channels] as it is
        # The other way round: what is wanted is the twin itself, under the name of the transpose.
        for user, index in list(node.outputs[0].uses()):
            user.replace_input_with(index, self._twins[source])
        return None

    def _convolution(self, node: ir.Node, writer: GraphWriter) -> ir.Value | None:
        activation = quantized_activation(node.inputs[0])
        if activation is None:
            return None
        levels = self._twins.get(activation.levels)
        if levels is None:  # the first of a chain, on features that are there channels first
            levels = writer.add("Transpose", activation.levels, perm=list(_SWAPPED))
        twin = replace(activation, levels=levels)
        product = convolution_product(writer, node, twin)
        if product is not None:
            self._replaced.add(node.outputs[0])
            self._convolutions += 1
        return product

    def _unsqueezed(self, node: ir.Node, writer: GraphWriter) -> ir.Value | None:
        source, axes = node.inputs[0], constant_of(node.inputs[1])
        is_signal = source is not None and source.shape is not None and len(source.shape) == 2
        if not is_signal or axes is None or axes.tolist() != [1]:
            return None
        return writer.add("Unsqueeze", source, writer.constant(np.array([2])))

    def _mean(self, node: ir.Node, writer: GraphWriter) -> ir.Value | None:
        source, axes = node.inputs[0], constant_of(node.inputs[1])
        if source not in self._twins or axes is None or axes.tolist() not in ([-1], [2]):
            return None
        if node.attributes.get_int("keepdims", 1) != 1:
            return None
        twin = self._twins[source]
        return writer.add("ReduceMean", twin, writer.constant(np.array([1])), keepdims=1)

    def _slice(self, node: ir.Node, writer: GraphWriter) -> ir.Value | None:
        axes = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
        source = node.inputs[0]
        if source not in self._twins or axes is None or axes.tolist() not in ([-1], [2]):
            return None
        twin = self._twins[source]
        rest = [*node.inputs[1:3], writer.constant(np.array([1])), *node.inputs[4:]]
        return writer.add("Slice", twin, *rest)

    def _elementwise(self, node: ir.Node, writer: GraphWriter) -> ir.Value | None:
        if node.op_type not in _ELEMENTWISE or not self._twins.keys() & set(node.inputs):
            return None
        inputs = [self._beside_twin(value, writer) for value in node.inputs]
        if any(a is None and b is not None for a, b in zip(inputs, node.inputs, strict=True)):
            return None
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return writer.add(node.op_type, *inputs, **attributes)

    def _beside_twin(self, value: ir.Value | None, writer: GraphWriter) -> ir.Value | None:
        """Return what stands for `value` beside twins, None where it cannot."""
        if value is None or value in self._twins:
            return None if value is None else self._twins[value]
        constant = constant_of(value)
        if constant is None:
            return None
        if constant.size == 1:
            return value
        if constant.ndim < 2:
            return None
        return writer.constant(np.ascontiguousarray(constant.swapaxes(-1, -2)))

    def _restore_inputs(self, node: ir.Node) -> None:
        """Let a node that knows no twins read the tensor in its own order."""
        for index, value in enumerate(node.inputs):
            if value in self._replaced and value is not None:
                writer = GraphWriter(self._model, before=node)
                swapped = writer.add("Transpose", self._twins[value], perm=list(_SWAPPED))
                node.replace_input_with(index, swapped)
