"""The weights of a bundle's graph that quantization turns into integers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import require_packages
from speechquant.core.weights import ConstantWeight
from speechquant.engines.graphs.qdq import quantized_nodes, weight_axis


def constant_weights(
    bundle: GraphSource, float_layers: Collection[str] = ()
) -> list[ConstantWeight]:
    """Return each weight once, in the order of the graph, without those of the float layers."""
    require_packages("quantization")
    import onnx_ir as ir

    model = ir.load(bundle.model_path)
    found: dict[str, ConstantWeight] = {}
    for node in quantized_nodes(model, bundle.spec, float_layers):
        activation, weight = node.inputs[0], node.inputs[1]
        if activation is None or weight is None or weight.const_value is None:
            continue
        if activation.name is None or weight.name is None or weight.name in found:
            continue
        found[weight.name] = ConstantWeight(
            name=weight.name,
            layer=bundle.spec.layers[activation.name],
            activation=activation.name,
            operator=node.op_type,
            channel_axis=weight_axis(node),
            attributes={name: attribute.value for name, attribute in node.attributes.items()},
            values=np.asarray(weight.const_value.numpy(), np.float32),
        )
    return list(found.values())
