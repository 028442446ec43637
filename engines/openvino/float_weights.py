"""Weights that OpenVINO must be given as floats, because it would get the integers wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechquant.core.weights import along_channels
from speechquant.engines.graphs.writer import GraphWriter, constant_of
from speechquant.engines.openvino.conv_weights import levels_behind
from speechquant.engines.openvino.few_channels import has_few_channels

if TYPE_CHECKING:
    import onnx_ir as ir


def give_float_weights(model: ir.Model) -> int:
    """Give convolutions that OpenVINO gets wrong float weights; return how many.

    OpenVINO 2026.4 moves the scale of an integer convolution behind the nodes that read it. Where
    several do, it gets x * x wrong (by a scale), and it forgets a norm's epsilon. With a float
    weight of the same values it multiplies in float. These are first convolutions of one channel,
    which cost little, and those that have few channels even with their groups put together.
    """
    found = [node for node in model.graph if node.op_type == "Conv" and _is_read_wrongly(node)]
    return sum(_give_float_weight(model, node) for node in found)


def _is_read_wrongly(node: ir.Node) -> bool:
    readers = {reader for reader, _ in node.outputs[0].uses()}
    if len(readers) > 1 or has_few_channels(node):
        return True
    return any(reader.op_type == "InstanceNormalization" for reader in readers)


def _give_float_weight(model: ir.Model, node: ir.Node) -> bool:
    scaling = levels_behind(node)
    if scaling is None:
        return False
    levels, scales = constant_of(scaling.inputs[0]), constant_of(scaling.inputs[1])
    if levels is None or scales is None:
        return False
    axis = scaling.attributes.get_int("axis", 1)
    values = levels.astype(np.float32) * along_channels(scales, axis, levels.ndim)
    node.replace_input_with(1, GraphWriter(model, before=node).constant(values))
    return True
