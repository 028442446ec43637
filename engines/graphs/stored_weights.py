"""The weights of a quantized bundle as its graph multiplies them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import require_packages
from speechquant.core.weights import along_channels

_ROUNDED_SUFFIX = "_dequantized"


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight that is kept as integers, turned into floats again."""

    name: str
    layer: str
    values: NDArray[np.float32]


def stored_weights(graph: GraphSource) -> list[StoredWeight]:
    """Return the integer weights of a quantized graph, in its order."""
    require_packages("inspecting weights")
    import onnx_ir as ir

    model = ir.load(graph.model_path)
    found = []
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        levels, scales = node.inputs[0], node.inputs[1]
        if levels is None or levels.const_value is None:
            continue
        if scales is None or scales.const_value is None:
            continue
        users = list(node.outputs[0].consumers())
        activation = users[0].inputs[0] if users else None
        tensor = "" if activation is None else (activation.name or "")
        layer = graph.spec.layers.get(tensor.removesuffix(_ROUNDED_SUFFIX))
        if layer is None:
            continue
        integers = levels.const_value.numpy()
        steps = along_channels(
            scales.const_value.numpy(), node.attributes.get_int("axis", 1), integers.ndim
        )
        values = integers.astype(np.float32) * steps
        found.append(StoredWeight(node.outputs[0].name or "", layer, values))
    return found
