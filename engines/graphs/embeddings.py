"""Tables in which a model's inputs are looked up, its embedding: integers, one scale for each row.

No product reads them, so that it saves size alone: of a small Whisper's weights a quarter and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError
from speechquant.core.graphs import GraphSource
from speechquant.engines.graphs.weights import QuantizedWeight, quantize_weight
from speechquant.engines.graphs.writer import (
    GraphWriter,
    add_constant,
    constant_of,
    producer_of,
    remove_unused,
    replace_value,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_ROWS = 0  # the axis that is looked up along
_LEVELS, _SCALE = "_quantized", "_scale"


@dataclass(frozen=True, eq=False)
class _Embedding:
    """A node that looks `rows`, an input of the model, up in a constant matrix."""

    node: ir.Node
    name: str
    table: NDArray[Any]
    rows: ir.Value

    def quantized(self, bits: int) -> QuantizedWeight:
        """Return the table in integers of 8 bits and more; raises BundleError."""
        # They are stored in 8 bits at least: fewer would lose precision and save nothing.
        return quantize_weight(self.table, _ROWS, max(bits, 8), name=self.name)


def _embeddings(model: ir.Model, kind: str) -> list[_Embedding]:
    """Return the embeddings in matrices of floats, kind f, or of integers, kind i."""
    found = []
    for node in model.graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != _ROWS:
            continue
        values, rows = node.inputs
        table = constant_of(values)
        if table is None or table.ndim != 2 or table.dtype.kind != kind:
            continue
        if values is not None and rows is not None and rows.is_graph_input():
            found.append(_Embedding(node, values.name or "", table, rows))
    return found


def quantize_embeddings(model: ir.Model, bits: int) -> None:
    """Let every lookup read integers and the scale of its row; raises BundleError."""
    import onnx_ir as ir

    for embedding in _embeddings(model, "f"):
        quantized = embedding.quantized(bits)
        levels = add_constant(model, f"{embedding.name}{_LEVELS}", quantized.levels)
        scales = add_constant(model, f"{embedding.name}{_SCALE}", quantized.scales[:, None])
        writer = GraphWriter(model, embedding.node)
        found = writer.add("Gather", levels, embedding.rows, axis=_ROWS)
        number = writer.add("Cast", found, to=int(ir.DataType.FLOAT))
        scale = writer.add("Gather", scales, embedding.rows, axis=_ROWS)
        replace_value(model, embedding.node.outputs[0], writer.add("Mul", number, scale))
    remove_unused(model)


def dequantize_embeddings(model: ir.Model) -> None:
    """Undo `quantize_embeddings`, for backends whose integers are for products alone."""
    for embedding in _embeddings(model, "i"):
        ((cast, _),) = embedding.node.outputs[0].uses()
        ((product, _),) = cast.outputs[0].uses()
        scale = producer_of(product.inputs[1], "Gather")
        scales = None if scale is None else constant_of(scale.inputs[0])
        if scales is None:
            raise BundleError(f"{embedding.name}: has no scales; quantize the model again")
        values = embedding.table.astype(np.float32) * scales
        table = add_constant(model, embedding.name.removesuffix(_LEVELS), values)
        writer = GraphWriter(model, product)
        found = writer.add("Gather", table, embedding.rows, axis=_ROWS)
        replace_value(model, product.outputs[0], found)
    remove_unused(model)


def rounded_embeddings(graph: GraphSource, bits: int) -> dict[str, NDArray[np.float32]]:
    """Return the tables of a float graph as `quantize_embeddings` leaves them, by name."""
    import onnx_ir as ir

    model = ir.load(graph.model_path)
    return {
        embedding.name: embedding.quantized(bits).dequantized
        for embedding in _embeddings(model, "f")
    }
