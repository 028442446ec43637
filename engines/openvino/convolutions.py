"""Convolutions over time spelled over an image of height one.

OpenVINO normalises images with their channels last, as its integer convolutions write them, but a
norm over time only with the channels first: it would turn the largest tensor of the graph around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechquant.engines.graphs.writer import GraphWriter, constant_of
from speechquant.engines.openvino.conv_weights import replace_weight, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

_HEIGHT_AXIS = 2
_BY_VALUE = frozenset({"Clip", "DequantizeLinear", "Gelu", "QuantizeLinear"})
_PASSED = _BY_VALUE | {"Conv", "InstanceNormalization"}
_SPATIAL = ("kernel_shape", "strides", "dilations")


@dataclass(frozen=True, eq=False)
class _Chain:
    """Nodes that read one another alone, from the one that adds the channels on."""

    start: ir.Node
    nodes: tuple[ir.Node, ...]


def spell_as_images(model: ir.Model) -> int:
    """Give the convolutions around a norm over time a height of one; return how many."""
    chains = [
        chain
        for node in model.graph
        if node.op_type == "InstanceNormalization" and (chain := _chain_around(node)) is not None
    ]
    return sum(_rewrite(model, chain) for chain in chains)


def _chain_around(norm: ir.Node) -> _Chain | None:
    before: list[ir.Node] = []
    node: ir.Node | None = norm
    while node is not None and node.op_type in _PASSED:
        before.insert(0, node)
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "Unsqueeze" or not _adds_channels(node):
        return None
    start, after, node = node, before[:-1], norm
    while node is not None and _can_pass(node):
        after.append(node)
        node = _only_reader(node)
    is_single = all(_only_reader(node) is not None for node in (start, *after[:-1]))
    return _Chain(start, tuple(after)) if is_single and norm in after else None


def _adds_channels(node: ir.Node) -> bool:
    axes = constant_of(node.inputs[1])
    return axes is not None and axes.tolist() == [1]


def _can_pass(node: ir.Node) -> bool:
    """Whether the node may read an image: a DequantizeLinear of a whole tensor, not of channels."""
    if node.op_type == "Conv":
        return node.attributes.get_int("group", 1) == 1 and weight_of(node) is not None
    return node.op_type in _PASSED


def _only_reader(node: ir.Node) -> ir.Node | None:
    readers = list(dict.fromkeys(reader for reader, _ in node.outputs[0].uses()))
    is_output = node.outputs[0].is_graph_output()
    return readers[0] if len(readers) == 1 and not is_output else None


def _rewrite(model: ir.Model, chain: _Chain) -> int:
    writer = GraphWriter(model, before=chain.start)
    chain.start.replace_input_with(1, writer.constant(np.array([1, _HEIGHT_AXIS])))
    for node in (chain.start, *chain.nodes):
        node.outputs[0].shape = None
    convolutions = [node for node in chain.nodes if node.op_type == "Conv"]
    for node in convolutions:
        _give_height(model, node)
    end = chain.nodes[-1].outputs[0]
    readers = list(end.uses())
    for reader, index in readers:
        writer = GraphWriter(model, before=reader)
        axis = writer.constant(np.array([_HEIGHT_AXIS]))
        reader.replace_input_with(index, writer.add("Squeeze", end, axis))
    return len(convolutions)


def _give_height(model: ir.Model, node: ir.Node) -> None:
    import onnx_ir as ir

    values = constant_of(weight_of(node))
    if values is None:
        return
    replace_weight(model, node, np.expand_dims(values, _HEIGHT_AXIS))
    attributes: dict[str, list[int]] = {}
    for name in _SPATIAL:
        if name in node.attributes:
            attributes[name] = [1, *_integers(node, name)]
    if "pads" in node.attributes:
        before, after = _integers(node, "pads")
        attributes["pads"] = [0, before, 0, after]
    for name, numbers in attributes.items():
        node.attributes[name] = ir.AttrInt64s(name, numbers)


def _integers(node: ir.Node, name: str) -> list[int]:
    return [int(number) for number in node.attributes.get_ints(name, ())]
