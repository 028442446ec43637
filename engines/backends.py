"""A backend as a record; each room of engines/ holds its own, `registry` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from speechquant.core.ctc import MODEL
from speechquant.core.errors import EngineError

if TYPE_CHECKING:
    from speechquant.core.engine_folders import Engine, EngineGraph
    from speechquant.core.graphs import GraphSource
    from speechquant.core.processor import Processor
    from speechquant.core.progress import OnStep
    from speechquant.engines.build_options import BuildOptions, Built, GraphToBuild
    from speechquant.engines.runners import BoundSession, Session


class OpenGraph(Protocol):
    """Opens a bundle's graph; raises MissingPackageError, EngineError and BundleError."""

    def __call__(
        self, graph: GraphSource, threads: int | None, profile_to: Path | None, /
    ) -> BoundSession:
        """Return a session; ONNX Runtime's times of each node go to `profile_to`."""
        ...


class OpenEngine(Protocol):
    """Opens an engine of one graph; raises MissingPackageError and EngineError."""

    def __call__(self, engine: Engine, threads: int | None, profile_to: Path | None, /) -> Session:
        """Return a session, as `OpenGraph` does."""
        ...


class OpenEngineGraphs(Protocol):
    """Opens an engine of several graphs; raises as `OpenEngine` does."""

    def __call__(
        self,
        graphs: Mapping[str, EngineGraph],
        threads: int | None,
        profile_to: Mapping[str, Path | None],
        /,
    ) -> Mapping[str, BoundSession]:
        """Return a session of each graph; they take each other's values."""
        ...


class BuildGraph(Protocol):
    """Builds the engine of one graph; raises OptionError, EngineError and MissingPackageError."""

    def __call__(
        self, graph: GraphToBuild, out: Path, options: BuildOptions, on_step: OnStep | None, /
    ) -> Built:
        """Write the file `out`, and what belongs to it into the same folder."""
        ...


@dataclass(frozen=True)
class EngineFormat:
    """How a backend stores, builds and opens engines.

    `stored_as` is the file of a model of one graph. `share_weights` moves the weights of engine
    files into one file, None where each file keeps its own.
    """

    stored_as: str
    build: BuildGraph
    open: OpenEngine
    open_graphs: OpenEngineGraphs
    share_weights: Callable[[Sequence[Path], Path], None] | None = None

    def file_of(self, graph: str) -> str:
        """Return the file of a graph by name, which is a CTC model's only one or one of several."""
        return self.stored_as if graph == MODEL else Path(self.stored_as).with_stem(graph).name


@dataclass(frozen=True)
class Backend:
    """What runs graphs for one provider; its functions import its packages when they are called.

    `library` and `within` say what computes, for a report. `suits` tells for which processors
    `--provider auto` takes it. `open` is None for one that takes engines alone, `engines` is None
    for one that takes none.
    """

    name: str
    provider: str
    library: str
    within: str = ""
    suits: Callable[[Processor], bool] = lambda processor: False
    open: OpenGraph | None = None
    engines: EngineFormat | None = None

    def open_graph(
        self, graph: GraphSource, threads: int | None, profile_to: Path | None
    ) -> BoundSession:
        """Return a session on a bundle's graph; raises as `OpenGraph` does."""
        if self.open is None:
            raise EngineError(f"{self.name} runs engines alone; build one for it")
        return self.open(graph, threads, profile_to)

    @property
    def takes_engines(self) -> bool:
        """Whether it builds and runs engines."""
        return self.engines is not None

    @property
    def how(self) -> str:
        """What a session of it runs in, in words."""
        return f"{self.library} {self.within}".rstrip()
