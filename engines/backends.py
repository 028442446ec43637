"""How each provider is given a bundle, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.bundles import FLOAT_PRECISION
from speechquant.core.errors import BundleError, EngineError, MissingPackageError
from speechquant.core.graphs import GraphSource
from speechquant.core.processor import read_processor
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.onnxruntime.graph import UNWANTED_OPTIMIZERS, cpu_model
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options
from speechquant.engines.openvino.plugin import (
    add_openvino,
    openvino_model,
    openvino_settings,
    refuse_other_results,
)
from speechquant.engines.openvino.session import OpenVinoSession, require_openvino

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

    from speechquant.engines.runners import BoundSession
    from speechquant.engines.session import Session

log = logging.getLogger(__name__)

AUTO, CPU, OPENVINO = "auto", "cpu", "openvino"
PROVIDERS = (AUTO, CPU, OPENVINO)
# Protobuf's limit.
_LARGEST_GRAPH_BYTES = 1 << 31

Graph = Path | bytes


@dataclass(frozen=True)
class Backend:
    """What opens a bundle's graph for a provider: it picks the graph's spelling and the settings.

    `open` takes the graph, the threads and where ONNX Runtime's times of each node go. It raises
    MissingPackageError, EngineError and BundleError.
    """

    provider: str
    open: Callable[[GraphSource, int | None, Path | None], BoundSession]


def cpu_graph(graph: GraphSource) -> Graph:
    """Return what ONNX Runtime's own provider runs: the graph's file, or the graph rewritten."""
    if graph.precision == FLOAT_PRECISION:
        return graph.model_path
    try:
        return _bytes_of(cpu_model(graph), graph)
    except (EngineError, MissingPackageError) as error:
        log.warning(
            'warning: %s, or run an engine that "speechquant build" made; running the bundle as '
            "it is, which is slower",
            error,
        )
        return graph.model_path


def configure_cpu(options: onnxruntime.SessionOptions) -> None:
    """Set what graphs that are rewritten for the CPU are run with."""
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", UNWANTED_OPTIMIZERS
    )
    have_exact_products(options)


def have_exact_products(options: onnxruntime.SessionOptions) -> None:
    """Have products of bytes summed up without overflow, on any processor."""
    # Without VNNI the kernels for unsigned by signed bytes add pairs of products up in 16 bits,
    # which overflow; this has the weights written as unsigned, for exact and slower kernels.
    if not read_processor().sums_byte_products_exactly:
        options.add_session_config_entry("session.x64quantprecision", "1")


def _open_on_cpu(graph: GraphSource, threads: int | None, profile_to: Path | None) -> BoundSession:
    options = session_options(threads, profile_to)
    configure_cpu(options)
    spelled = cpu_graph(graph)
    try:
        return OnnxRuntimeSession(spelled, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{graph.folder}: ONNX Runtime refuses {graph.model_path.name} ({reason}); "
            'export it again with "speechquant export"'
        ) from error


def _open_in_plugin(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> BoundSession:
    refuse_other_results(graph)
    options = session_options(threads, profile_to)
    add_openvino(options, graph, threads)
    spelled = _openvino_graph(graph)
    try:
        return OnnxRuntimeSession(spelled, options, OPENVINO)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise EngineError(f"OpenVINO's plugin refuses the graph ({reason})") from error


def _open_in_package(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> BoundSession:
    refuse_other_results(graph)
    require_openvino()  # before the graph is rewritten, which takes a moment
    return OpenVinoSession(_openvino_graph(graph), openvino_settings(graph), threads)


def _openvino_graph(graph: GraphSource) -> Graph:
    if graph.precision == FLOAT_PRECISION:
        return graph.model_path
    return _bytes_of(openvino_model(graph), graph)


def _bytes_of(model: ir.Model, source: GraphSource) -> bytes:
    import onnx_ir as ir

    graph = ir.to_proto(model)
    if graph.ByteSize() >= _LARGEST_GRAPH_BYTES:
        raise EngineError(f"{source.folder}: its graph is too large to be rewritten in memory")
    return bytes(graph.SerializeToString())


ON_CPU = Backend(CPU, _open_on_cpu)
OPENVINO_PLUGIN = Backend(OPENVINO, _open_in_plugin)
OPENVINO_PACKAGE = Backend(OPENVINO, _open_in_package)


def backends_of(provider: str) -> list[Backend]:
    """Return the backends to be tried in turn; the last of them is on every machine."""
    wants_openvino = provider == OPENVINO or (provider == AUTO and read_processor().is_intel)
    return [OPENVINO_PLUGIN, OPENVINO_PACKAGE, ON_CPU] if wants_openvino else [ON_CPU]


def how_it_runs(session: Session | Seq2SeqSession) -> str:
    """Return what a bundle's session runs in; provider openvino may be either of two."""
    graph = session.encoder if isinstance(session, Seq2SeqSession) else session
    if isinstance(graph, OpenVinoSession):
        return "OpenVINO in its own package"
    if graph.provider == OPENVINO:
        return "OpenVINO through ONNX Runtime"
    return "ONNX Runtime's CPU provider"
