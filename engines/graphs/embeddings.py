"""The table that a model's inputs are looked up in, its embedding: integers, a scale a token.

A token is a row of a table of its own, or a column of the head's matrix where the two are tied.
Both then read the same integers, unless they are to have different ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import BundleError
from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import WEIGHT_OPERATORS
from speechquant.engines.graphs.qdq import quantized_nodes
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

_ROWS = 0
_LEVELS, _SCALE, _TABLE = "_quantized", "_scale", "_table"


@dataclass(frozen=True, eq=False)
class _Embedding:
    """A node that looks `tokens`, an input of the model, up along `axis` of a constant matrix."""

    node: ir.Node
    name: str
    table: NDArray[Any]
    axis: int
    tokens: ir.Value

    def quantized(self, bits: int) -> QuantizedWeight:
        """Return the table in integers of 8 bits and more; raises BundleError."""
        # They are stored in 8 bits at least: fewer would lose precision and save nothing.
        return quantize_weight(self.table, self.axis, max(bits, 8), name=self.name)

    @property
    def products(self) -> list[ir.Node]:
        """The nodes that multiply by the table, those of a tied head."""
        table = self.node.inputs[0]
        users = [] if table is None else [user for user, _ in table.uses()]
        return [user for user in users if user.op_type in WEIGHT_OPERATORS]


def _embeddings(model: ir.Model, kind: str) -> list[_Embedding]:
    """Return the embeddings in matrices of floats, kind f, or of integers, kind i."""
    found = []
    for node in model.graph:
        values, tokens = node.inputs if node.op_type == "Gather" else (None, None)
        table = constant_of(values)
        if table is None or table.ndim != 2 or table.dtype.kind != kind:
            continue
        if values is not None and tokens is not None and tokens.is_graph_input():
            axis = node.attributes.get_int("axis", 0) % table.ndim
            found.append(_Embedding(node, values.name or "", table, axis, tokens))
    return found


def quantize_embeddings(model: ir.Model, bits: int) -> None:
    """Let every lookup read integers and the scale of its token; raises BundleError.

    To be called after `quantize_weights`: a table that a product still reads stays float for both,
    since its floats are stored anyway, and integers that a product reads are not stored again.
    """
    import onnx_ir as ir

    for embedding in _embeddings(model, "f"):
        if embedding.products:
            continue
        quantized = embedding.quantized(bits)
        # One scale for each token, in a shape that multiplies what is looked up.
        by_token = quantized.scales[:, None] if embedding.axis == _ROWS else quantized.scales
        levels = _stored_once(model, f"{embedding.name}{_LEVELS}", quantized.levels)
        scales = _stored_once(model, f"{embedding.name}{_SCALE}", by_token)
        writer = GraphWriter(model, embedding.node)
        found = writer.add("Gather", levels, embedding.tokens, axis=embedding.axis)
        number = writer.add("Cast", found, to=int(ir.DataType.FLOAT))
        scale = writer.add("Gather", scales, embedding.tokens, axis=0)
        replace_value(model, embedding.node.outputs[0], writer.add("Mul", number, scale))
    remove_unused(model)


def _stored_once(model: ir.Model, name: str, values: NDArray[Any]) -> ir.Value:
    """Return an initializer of these values: one that is there, or a new one called `name`."""
    for stored in model.graph.initializers.values():
        shape = None if stored.const_value is None else tuple(stored.const_value.shape)
        found = constant_of(stored) if shape == values.shape else None
        if found is not None and found.dtype == values.dtype and np.array_equal(found, values):
            return stored
    return add_constant(model, name, values)


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
        # No product's name: a tied head goes on to read the integers.
        table = add_constant(model, f"{embedding.name.removesuffix(_LEVELS)}{_TABLE}", values)
        writer = GraphWriter(model, product)
        found = writer.add("Gather", table, embedding.tokens, axis=embedding.axis)
        replace_value(model, product.outputs[0], found)
    remove_unused(model)


def rounded_embeddings(
    graph: GraphSource, bits: int, float_layers: Collection[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Return the tables of a float graph as a quantized bundle looks tokens up in them, by name."""
    import onnx_ir as ir

    model = ir.load(graph.model_path)
    quantized = quantized_nodes(model, graph.spec, float_layers)
    return {
        embedding.name: embedding.quantized(bits).dequantized
        for embedding in _embeddings(model, "f")
        if all(product in quantized for product in embedding.products)
    }
