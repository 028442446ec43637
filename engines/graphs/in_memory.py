"""A rewritten graph as the bytes that a runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.errors import EngineError

if TYPE_CHECKING:
    import onnx_ir as ir

# Protobuf's limit.
_LARGEST_GRAPH_BYTES = 1 << 31


def bytes_of(model: ir.Model, folder: Path) -> bytes:
    """Return the model of the bundle in `folder`; raises EngineError where it is too large."""
    import onnx_ir as ir

    graph = ir.to_proto(model)
    if graph.ByteSize() >= _LARGEST_GRAPH_BYTES:
        raise EngineError(f"{folder}: its graph is too large to be rewritten in memory")
    return bytes(graph.SerializeToString())
