"""Bundles and engines on ONNX Runtime's own CPU provider."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from speechquant.core.bundles import FLOAT_PRECISION
from speechquant.core.engine_folders import EngineGraph
from speechquant.core.errors import BundleError, EngineError, MissingPackageError, one_line
from speechquant.core.graphs import GraphSource
from speechquant.engines.graphs.in_memory import bytes_of
from speechquant.engines.onnxruntime.graph import cpu_model
from speechquant.engines.onnxruntime.session import (
    OnnxRuntimeSession,
    configure_cpu,
    session_options,
)
from speechquant.engines.runners import Graph

log = logging.getLogger(__name__)


def cpu_graph(graph: GraphSource) -> Graph:
    """Return what ONNX Runtime's own provider runs: the graph's file, or the graph rewritten."""
    if graph.precision == FLOAT_PRECISION:
        return graph.model_path
    try:
        return bytes_of(cpu_model(graph), graph.folder)
    except (EngineError, MissingPackageError) as error:
        log.warning(
            'warning: %s, or run an engine that "speechquant build" made; running the bundle as '
            "it is, which is slower",
            error,
        )
        return graph.model_path


def open_bundle_graph(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> OnnxRuntimeSession:
    """Return a session on a bundle's graph; raises BundleError."""
    options = session_options(threads, profile_to)
    configure_cpu(options)
    spelled = cpu_graph(graph)
    try:
        return OnnxRuntimeSession(spelled, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = one_line(error)
        raise BundleError(
            f"{graph.folder}: ONNX Runtime refuses {graph.model_path.name} ({reason}); "
            'export it again with "speechquant export"'
        ) from error


def open_engine_graph(
    engine: EngineGraph, threads: int | None, profile_to: Path | None
) -> OnnxRuntimeSession:
    """Return a session on an engine's graph; raises EngineError."""
    options = session_options(threads, profile_to)
    configure_cpu(options)
    try:
        return OnnxRuntimeSession(engine.engine_path, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = one_line(error)
        raise EngineError(
            f"{engine.folder}: ONNX Runtime refuses {engine.manifest.engine_file} ({reason}); "
            'make it again with "speechquant build"'
        ) from error


def open_engine_graphs(
    graphs: Mapping[str, EngineGraph], threads: int | None, profile_to: Mapping[str, Path | None]
) -> dict[str, OnnxRuntimeSession]:
    """Return a session on each graph of an engine; raises EngineError."""
    return {
        name: open_engine_graph(graph, threads, profile_to[name]) for name, graph in graphs.items()
    }
