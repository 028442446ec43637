"""A bundle's graph with changes, opened without writing it to disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import WEIGHT_OPERATORS, require_packages
from speechquant.engines.onnxruntime.session import (
    OnnxRuntimeSession,
    compute_as_spelled,
    session_options,
)

if TYPE_CHECKING:
    import onnx

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def load_graph(bundle: GraphSource, what: str) -> onnx.ModelProto:
    """Return the bundle's model; weights that lie beside it stay there.

    Raises MissingPackageError, which says that `what` needs onnx.
    """
    require_packages(what)
    import onnx

    return onnx.load(str(bundle.model_path), load_external_data=False)


def weighted_nodes(model: onnx.ModelProto, bundle: GraphSource) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes with constant weights that read each activation of the layer map."""
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in bundle.spec.layers}
    for node in model.graph.node:
        is_weighted = node.op_type in WEIGHT_OPERATORS and node.input[1] in weights
        if is_weighted and node.input[0] in readers:
            readers[node.input[0]].append(node)
    return readers


class ChangedGraph(OnnxRuntimeSession):
    """A session on a changed graph of `bundle`, with `weights` in place of its own."""

    def __init__(
        self,
        model: onnx.ModelProto,
        bundle: GraphSource,
        threads: int | None,
        weights: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        import onnxruntime

        options = session_options(threads)
        compute_as_spelled(options)
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(bundle.folder))
        # The session reads these as long as it lives, and holds none of them itself.
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
            for name, value in (weights or {}).items()
        }
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        super().__init__(model.SerializeToString(), options)
