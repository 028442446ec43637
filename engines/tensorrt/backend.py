"""TensorRT and TensorRT-RTX as backends: they take engines alone, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.engines.backends import Backend, EngineFormat

if TYPE_CHECKING:
    from speechquant.core.engine_folders import Engine, EngineGraph
    from speechquant.core.progress import OnStep
    from speechquant.engines.build_options import BuildOptions, Built, GraphToBuild
    from speechquant.engines.runners import BoundSession, Session


def _open_engine(engine: Engine, threads: int | None, profile_to: Path | None) -> Session:
    from speechquant.engines.tensorrt.session import TensorRtSession

    return TensorRtSession(engine)


def _open_graphs(
    graphs: Mapping[str, EngineGraph], threads: int | None, profile_to: Mapping[str, Path | None]
) -> Mapping[str, BoundSession]:
    from speechquant.engines.tensorrt.bound_session import open_together

    return open_together(graphs)


def _build(graph: GraphToBuild, out: Path, options: BuildOptions, on_step: OnStep | None) -> Built:
    from speechquant.engines.tensorrt.builder import build_tensorrt

    return build_tensorrt(graph, out, options, on_step)


_ENGINES = EngineFormat("model.engine", _build, _open_engine, _open_graphs)
TENSORRT = Backend("tensorrt", provider="tensorrt", library="TensorRT", engines=_ENGINES)
TENSORRT_RTX = Backend(
    "tensorrt-rtx", provider="tensorrt-rtx", library="TensorRT-RTX", engines=_ENGINES
)
