"""What of a graph stays in float32, from its structure and from the values that flow through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from speechquant.core.graphs import GraphSource
from speechquant.core.scales import SCALES_FILE, read_scales
from speechquant.engines.runners import Tensors
from speechquant.engines.trials.changed_graph import ChangedGraph, load_graph

if TYPE_CHECKING:
    import onnx_ir as ir

# Speech reaches farther than the noise that the graph is tried on; two bits are left for it.
_LARGEST_TRIED = float(np.finfo(np.float16).max) / 4
# Sums over time and what is made of them: in float16 the squares overflow, and in both narrow types
# the difference of two of them, a variance, keeps no digits.
_STATISTICS = frozenset(
    {
        "Exp", "Log", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reciprocal",
        "Sqrt",
    }
)  # fmt: skip
_LARGEST = ".speechquant.largest"
_ELEMENTWISE = frozenset({"Add", "Clip", "Div", "Max", "Mul", "Neg", "Sub"})


def largest_magnitudes(source: GraphSource, feeds: Tensors) -> dict[str, float]:
    """Return the largest magnitude of each float tensor of the graph on `feeds`.

    Of a quantized bundle the ranges that its calibration data gave count as well.
    """
    model = load_graph(source, "building an engine")
    import onnx

    kept = {output.name for output in model.graph.output}
    floats = [
        info.name
        for info in model.graph.value_info
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and info.name not in kept
    ]
    for name in floats:
        # Taken in the graph: all attention scores of a chunk together are gigabytes.
        reduced = f"{name}{_LARGEST}"
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{reduced}.magnitude"]))
        model.graph.node.append(
            onnx.helper.make_node("ReduceMax", [f"{reduced}.magnitude"], [reduced], keepdims=0)
        )
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(reduced, onnx.TensorProto.FLOAT, [])
        )
    with ChangedGraph(model, source, threads=None) as session:
        values = session.run(feeds)
    largest = {
        name.removesuffix(_LARGEST): float(np.abs(value).max(initial=0.0))
        for name, value in values.items()
    }
    scales = source.folder / SCALES_FILE
    if scales.is_file():
        for name, row in read_scales(scales).tensors.items():
            largest[name] = max(row.amax, largest.get(name, 0.0))
    return largest


def float32_nodes(model: ir.Model, largest: Mapping[str, float]) -> tuple[str, ...]:
    """Return the names of the nodes that a narrower float would spoil, in the graph's order."""
    kept = _statistics(model) | _overflowing(model, largest)
    return tuple(node.name or "" for node in model.graph if node.name in kept)


def _overflowing(model: ir.Model, largest: Mapping[str, float]) -> set[str]:
    import onnx_ir as ir

    def is_large(value: ir.Value | None) -> bool:
        if value is None:
            return False
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            numbers = value.const_value.numpy()
            return bool(np.abs(numbers).max(initial=0.0) > _LARGEST_TRIED)
        return largest.get(value.name or "", 0.0) > _LARGEST_TRIED

    return {
        node.name or ""
        for node in model.graph
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        and any(map(is_large, [*node.inputs, *node.outputs]))
    }


def _statistics(model: ir.Model) -> set[str]:
    """Return the nodes that take statistics of floats, the squares before and the scaling after."""
    import onnx_ir as ir

    seeds = [
        node
        for node in model.graph
        if node.op_type in _STATISTICS and node.outputs[0].dtype == ir.DataType.FLOAT
    ]
    kept = {node.name or "" for node in seeds}
    for node in seeds:
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        if before is not None and before.op_type in _ELEMENTWISE:
            kept.add(before.name or "")
    waiting = list(seeds)
    while waiting:
        for after in waiting.pop().outputs[0].consumers():
            if after.op_type in _ELEMENTWISE and after.name not in kept:
                kept.add(after.name or "")
                waiting.append(after)
    return kept
