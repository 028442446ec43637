"""A graph in the package openvino, as a session: it takes processors that the plugin does not."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError, MissingPackageError, one_line
from speechquant.engines.runners import OPENVINO

PACKAGE = "openvino"


def require_openvino() -> None:
    """Raise MissingPackageError where the package is not installed."""
    if find_spec(PACKAGE) is None:
        raise MissingPackageError(f"the package {PACKAGE} is not installed: pip install {PACKAGE}")


class OpenVinoSession:
    """Runs the graph in a file or in bytes in OpenVINO on the CPU.

    `settings` are OpenVINO's own. Threads may share a session and take turns. Opening one raises
    MissingPackageError, and EngineError where OpenVINO refuses the graph.
    """

    provider = OPENVINO

    def __init__(
        self, graph: Path | bytes, settings: Mapping[str, str], threads: int | None = None
    ) -> None:
        require_openvino()
        if threads is not None:
            settings = {**settings, "INFERENCE_NUM_THREADS": str(threads)}
        source = graph if isinstance(graph, bytes) else str(graph)
        try:
            core = import_module(PACKAGE).Core()
            self.compiled: Any = core.compile_model(core.read_model(source), "CPU", dict(settings))
            self._request: Any = self.compiled.create_infer_request()
        except Exception as error:  # OpenVINO's errors share no base class
            reason = one_line(error)
            raise EngineError(f"the package {PACKAGE} refuses the graph ({reason})") from error
        self._names = [output.get_any_name() for output in self.compiled.outputs]
        # One infer request may run one call at a time.
        self._turn = threading.Lock()

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._turn:
            self._request = self.compiled = None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError once the session is closed."""
        with self._turn:
            if self._request is None:
                raise EngineError("this session is closed; open another")
            self._request.infer(dict(feeds), share_inputs=True)
            # Copied: the request writes the next outputs into the same memory.
            return {name: np.array(self._request.get_tensor(name).data) for name in self._names}

    def value_of(self, array: NDArray[Any]) -> Any:
        """Return a value with a copy of an array."""
        return import_module(PACKAGE).Tensor(np.ascontiguousarray(array))

    def array_of(self, value: Any) -> NDArray[Any]:
        """Return an array with a copy of a value."""
        return np.array(value.data)

    def new_runs(self) -> OpenVinoRuns:
        """Return runs of their own inputs; raises EngineError once the session is closed."""
        if self.compiled is None:
            raise EngineError("this session is closed; open another")
        return OpenVinoRuns(self.compiled, self._names)


class OpenVinoRuns:
    """Runs of a compiled graph on OpenVINO's own tensors.

    A request writes its outputs into the same memory each time, so two of them take turns: each
    reads what the other gave.
    """

    def __init__(self, compiled: Any, outputs: Sequence[str]) -> None:
        self._outputs = outputs
        self._next, self._later = (compiled.create_infer_request() for _ in range(2))

    def bind(self, name: str, value: Any) -> None:
        """Give an input its value."""
        self._next.set_tensor(name, value)
        self._later.set_tensor(name, value)

    def run(self) -> dict[str, Any]:
        """Return the value of every output by name."""
        request = self._next
        self._next, self._later = self._later, request
        request.infer()
        return {name: request.get_tensor(name) for name in self._outputs}
