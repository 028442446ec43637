"""One matrix for embedding and head where the checkpoint has one: the head's, [size, tokens]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def share_embedding(model: ir.Model) -> None:
    """Look tokens up in the head's matrix, as columns, where that is the embedding transposed.

    The other way around the head would be transposed at every step.
    """
    for lookup in list(model.graph):
        if lookup.op_type != "Gather" or lookup.attributes.get_int("axis", 0) != 0:
            continue
        table, tokens = lookup.inputs
        if table is None or tokens is None or not tokens.is_graph_input():
            continue
        head = _transposed(model, table)
        if head is not None:
            _look_up_columns(model, lookup, head, tokens)
            del model.graph.initializers[table.name or ""]


def _transposed(model: ir.Model, table: ir.Value) -> ir.Value | None:
    """Return the matrix of a product that holds the numbers of `table`, transposed."""
    if table.const_value is None:
        return None
    rows = table.const_value.numpy()
    for node in model.graph:
        matrix = node.inputs[1] if node.op_type == "MatMul" else None
        if matrix is None or matrix.const_value is None:
            continue
        is_shaped_so = tuple(matrix.const_value.shape) == rows.shape[::-1]
        if is_shaped_so and np.array_equal(matrix.const_value.numpy(), rows.T):
            return matrix
    return None


def _look_up_columns(model: ir.Model, lookup: ir.Node, head: ir.Value, tokens: ir.Value) -> None:
    import onnx_ir as ir

    columns = ir.node("Gather", [head, tokens], {"axis": 1})  # [size, batch, tokens]
    rows = ir.node("Transpose", columns.outputs, {"perm": [1, 2, 0]})
    old, new = lookup.outputs[0], rows.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = None
    model.graph.insert_before(lookup, [columns, rows])
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    model.graph.remove(lookup, safe=True)
