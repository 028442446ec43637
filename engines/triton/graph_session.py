"""A graph that another backend of the same Triton runs, as a session of a Python model."""

from __future__ import annotations

import math
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError, one_line
from speechquant.core.specs import GraphSpec
from speechquant.engines.runners import Tensors

UTILITIES = "triton_python_backend_utils"  # Triton has it in its Python backend alone


class TritonGraphSession:
    """Runs the graph that Triton calls `name`; a batch above `most_rows` runs in parts."""

    provider = "triton"

    def __init__(self, name: str, spec: GraphSpec, most_rows: int | None, lengths: str) -> None:
        self._name, self._most_rows, self._lengths = name, most_rows, np.dtype(lengths)
        self._outputs = [output.name for output in spec.outputs]

    def __enter__(self) -> TritonGraphSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError with what Triton says."""
        rows = len(next(iter(feeds.values())))
        count = 1 if self._most_rows is None else math.ceil(rows / self._most_rows)
        pieces = {name: np.array_split(value, count) for name, value in feeds.items()}
        done = [self._run_part({name: pieces[name][n] for name in feeds}) for n in range(count)]
        return {name: np.concatenate([part[name] for part in done]) for name in self._outputs}

    def _run_part(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        triton = import_module(UTILITIES)
        request = triton.InferenceRequest(
            model_name=self._name,
            requested_output_names=self._outputs,
            inputs=[triton.Tensor(name, self._as_taken(value)) for name, value in feeds.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"{self._name}: {one_line(response.error().message())}")
        found = {
            name: triton.get_output_tensor_by_name(response, name).as_numpy()
            for name in self._outputs
        }
        return {name: np.array(value) for name, value in found.items()}

    def _as_taken(self, value: NDArray[Any]) -> NDArray[Any]:
        is_integer = np.issubdtype(value.dtype, np.integer)
        return np.ascontiguousarray(value, self._lengths if is_integer else value.dtype)
