"""A bundle's graph with changes, opened without writing it to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.errors import MissingPackageError

if TYPE_CHECKING:
    import onnx

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_WEIGHT_OPERATORS = frozenset({"Conv", "MatMul", "Gemm"})


@contextmanager
def onnx_required(what: str) -> Iterator[None]:
    """Turn a missing onnx package into a MissingPackageError that says what needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnx_ir"):
            raise
        raise MissingPackageError(
            f"{what} needs {error.name}: pip install 'speechquant[quantize]'"
        ) from error


def load_graph(bundle: Bundle) -> onnx.ModelProto:
    """Return the bundle's model; weights that lie beside it stay there."""
    import onnx

    return onnx.load(str(bundle.model_path), load_external_data=False)


def weighted_nodes(model: onnx.ModelProto, bundle: Bundle) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes with constant weights that read each activation of the layer map."""
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in bundle.spec.layers}
    for node in model.graph.node:
        is_weighted = node.op_type in _WEIGHT_OPERATORS and node.input[1] in weights
        if is_weighted and node.input[0] in readers:
            readers[node.input[0]].append(node)
    return readers


class ChangedGraph:
    """A session on a changed graph of `bundle`, with `weights` in place of its own."""

    def __init__(
        self,
        model: onnx.ModelProto,
        bundle: Bundle,
        threads: int | None,
        weights: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(bundle.folder))
        if threads is not None:
            options.intra_op_num_threads = threads
        # The session reads these as long as it lives, and holds none of them itself.
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
            for name, value in (weights or {}).items()
        }
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        values = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, values, strict=True))
