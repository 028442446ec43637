"""Running a graph on a backend's own values: what it gives the next run takes, without arrays."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from speechquant.engines.session import Session


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
    """A session whose graph also runs on values; those of one backend's sessions are alike."""

    def value_of(self, array: NDArray[Any]) -> Any:
        """Return a value with a copy of an array."""
        ...

    def array_of(self, value: Any) -> NDArray[Any]:
        """Return an array with a copy of a value."""
        ...

    def new_runs(self) -> BoundRuns:
        """Return runs of their own inputs; several may be under way."""
        ...
