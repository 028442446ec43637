"""Bundles in OpenVINO: through ONNX Runtime's plugin, or in the package openvino."""

from __future__ import annotations

from pathlib import Path

from speechquant.core.bundles import FLOAT_PRECISION
from speechquant.core.errors import EngineError, one_line
from speechquant.core.graphs import GraphSource
from speechquant.engines.graphs.in_memory import bytes_of
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.openvino.plugin import (
    add_openvino,
    openvino_model,
    openvino_settings,
    refuse_other_results,
)
from speechquant.engines.openvino.session import OpenVinoSession, require_openvino
from speechquant.engines.runners import OPENVINO, Graph


def open_in_plugin(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> OnnxRuntimeSession:
    """Return a session of ONNX Runtime; raises MissingPackageError and EngineError."""
    refuse_other_results(graph)
    options = session_options(threads, profile_to)
    add_openvino(options, graph, threads)
    spelled = _openvino_graph(graph)
    try:
        return OnnxRuntimeSession(spelled, options, OPENVINO)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = one_line(error)
        raise EngineError(f"OpenVINO's plugin refuses the graph ({reason})") from error


def open_in_package(graph: GraphSource, threads: int | None) -> OpenVinoSession:
    """Return a session of the package; raises MissingPackageError and EngineError."""
    refuse_other_results(graph)
    require_openvino()  # before the graph is rewritten, which takes a moment
    return OpenVinoSession(_openvino_graph(graph), openvino_settings(graph), threads)


def _openvino_graph(graph: GraphSource) -> Graph:
    if graph.precision == FLOAT_PRECISION:
        return graph.model_path
    return bytes_of(openvino_model(graph), graph.folder)
