"""How each provider of ONNX Runtime is given a bundle, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.bundles import FLOAT_PRECISION, Bundle
from speechquant.core.errors import EngineError, MissingPackageError
from speechquant.engines.cpu_graph import UNWANTED_OPTIMIZERS, cpu_model
from speechquant.engines.openvino import add_openvino, openvino_model
from speechquant.engines.processor import read_processor

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

log = logging.getLogger(__name__)

AUTO, CPU, OPENVINO = "auto", "cpu", "openvino"
PROVIDERS = (AUTO, CPU, OPENVINO)
# Protobuf's limit.
_LARGEST_GRAPH_BYTES = 1 << 31

Graph = Path | bytes


@dataclass(frozen=True)
class BackendProfile:
    """The graph that a provider is given, in the spelling it likes, and its settings.

    `configure` changes the settings that it is handed. Both raise MissingPackageError and
    EngineError.
    """

    provider: str
    graph_of: Callable[[Bundle], Graph]
    configure: Callable[[onnxruntime.SessionOptions, Bundle, int | None], None]


def _cpu_graph(bundle: Bundle) -> Graph:
    if bundle.spec.precision == FLOAT_PRECISION:
        return bundle.model_path
    try:
        return _bytes_of(cpu_model(bundle), bundle)
    except (EngineError, MissingPackageError) as error:
        log.warning(
            'warning: %s, or run an engine that "speechquant build" made; running the bundle as '
            "it is, which is slower",
            error,
        )
        return bundle.model_path


def configure_cpu(options: onnxruntime.SessionOptions) -> None:
    """Set what graphs that are rewritten for the CPU are run with."""
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", UNWANTED_OPTIMIZERS
    )
    # Without VNNI the kernels for unsigned by signed bytes add pairs of products up in 16 bits,
    # which overflow; this has the weights written as unsigned, for exact and slower kernels.
    if not read_processor().sums_byte_products_exactly:
        options.add_session_config_entry("session.x64quantprecision", "1")


def _configure_cpu(
    options: onnxruntime.SessionOptions, bundle: Bundle, threads: int | None
) -> None:
    configure_cpu(options)


def _openvino_graph(bundle: Bundle) -> Graph:
    if bundle.spec.precision == FLOAT_PRECISION:
        return bundle.model_path
    return _bytes_of(openvino_model(bundle), bundle)


def _bytes_of(model: ir.Model, bundle: Bundle) -> bytes:
    import onnx_ir as ir

    graph = ir.to_proto(model)
    if graph.ByteSize() >= _LARGEST_GRAPH_BYTES:
        raise EngineError(f"{bundle.folder}: its graph is too large to be rewritten in memory")
    return bytes(graph.SerializeToString())


CPU_PROFILE = BackendProfile(CPU, _cpu_graph, _configure_cpu)
OPENVINO_PROFILE = BackendProfile(OPENVINO, _openvino_graph, add_openvino)


def profiles_of(provider: str) -> list[BackendProfile]:
    """Return the profiles to be tried in turn; the last of them is on every machine."""
    wants_openvino = provider == OPENVINO or (provider == AUTO and read_processor().is_intel)
    return [OPENVINO_PROFILE, CPU_PROFILE] if wants_openvino else [CPU_PROFILE]
