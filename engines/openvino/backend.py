"""OpenVINO as two backends: the package takes processors that ONNX Runtime's plugin does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.engines.backends import Backend
from speechquant.engines.runners import OPENVINO

if TYPE_CHECKING:
    from speechquant.core.graphs import GraphSource
    from speechquant.engines.runners import BoundSession


def _open_in_plugin(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> BoundSession:
    from speechquant.engines.openvino.opening import open_in_plugin

    return open_in_plugin(graph, threads, profile_to)


def _open_in_package(
    graph: GraphSource, threads: int | None, profile_to: Path | None
) -> BoundSession:
    from speechquant.engines.openvino.opening import open_in_package

    return open_in_package(graph, threads)


OPENVINO_PLUGIN = Backend(
    name="openvino-plugin",
    provider=OPENVINO,
    library="OpenVINO",
    within="through ONNX Runtime",
    suits=lambda processor: processor.is_intel,
    open=_open_in_plugin,
)
OPENVINO_PACKAGE = Backend(
    name="openvino-package",
    provider=OPENVINO,
    library="OpenVINO",
    within="in its own package",
    suits=lambda processor: processor.is_intel,
    open=_open_in_package,
)
