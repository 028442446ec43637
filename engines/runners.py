"""What every session of a graph can do, and the names of the providers; nothing of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    # The names alone are needed by `speechquant --help`, which loads no NumPy.
    from numpy.typing import NDArray

AUTO, CPU, OPENVINO = "auto", "cpu", "openvino"

Graph = Path | bytes
Tensors: TypeAlias = "Mapping[str, NDArray[Any]]"


class Session(Protocol):
    """A context manager that runs one graph."""

    @property
    def provider(self) -> str:
        """What runs it: cpu, openvino, tensorrt, tensorrt-rtx."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        ...


class BoundRuns(Protocol):
    """Runs of one graph, whose inputs stay bound from one run to the next.

    What a run gives is good until the run after the next one, bound or not.
    """

    def bind(self, name: str, value: Any) -> None:
        """Give an input its value."""
        ...

    def run(self) -> dict[str, Any]:
        """Return the value of every output by name."""
        ...


class BoundSession(Session, Protocol):
    """A session whose graph also runs on a backend's own values, without arrays between runs."""

    def value_of(self, array: NDArray[Any]) -> Any:
        """Return a value with a copy of an array."""
        ...

    def array_of(self, value: Any) -> NDArray[Any]:
        """Return an array with a copy of a value."""
        ...

    def new_runs(self) -> BoundRuns:
        """Return runs of their own inputs; several may be under way."""
        ...
