"""ONNX Runtime's own CPU provider, as a backend: it is on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.engines.backends import Backend, EngineFormat
from speechquant.engines.runners import CPU

if TYPE_CHECKING:
    from speechquant.core.engine_folders import Engine, EngineGraph
    from speechquant.core.graphs import GraphSource
    from speechquant.core.progress import OnStep
    from speechquant.engines.build_options import BuildOptions, Built, GraphToBuild
    from speechquant.engines.runners import BoundSession, Session


def _open(graph: GraphSource, threads: int | None, profile_to: Path | None) -> BoundSession:
    from speechquant.engines.onnxruntime.opening import open_bundle_graph

    return open_bundle_graph(graph, threads, profile_to)


def _open_engine(engine: Engine, threads: int | None, profile_to: Path | None) -> Session:
    from speechquant.engines.onnxruntime.opening import open_engine_graph

    return open_engine_graph(engine.only_graph, threads, profile_to)


def _open_graphs(
    graphs: Mapping[str, EngineGraph], threads: int | None, profile_to: Mapping[str, Path | None]
) -> Mapping[str, BoundSession]:
    from speechquant.engines.onnxruntime.opening import open_engine_graphs

    return open_engine_graphs(graphs, threads, profile_to)


def _build(graph: GraphToBuild, out: Path, options: BuildOptions, on_step: OnStep | None) -> Built:
    from speechquant.engines.onnxruntime.builder import build_onnxruntime

    return build_onnxruntime(graph, out, options)


def _share_weights(graphs: Sequence[Path], data: Path) -> None:
    from speechquant.engines.onnxruntime.builder import share_weights

    share_weights(graphs, data)


ONNXRUNTIME = Backend(
    name="onnxruntime",
    provider=CPU,
    library="ONNX Runtime's CPU provider",
    suits=lambda processor: True,
    open=_open,
    engines=EngineFormat("engine.onnx", _build, _open_engine, _open_graphs, _share_weights),
)
