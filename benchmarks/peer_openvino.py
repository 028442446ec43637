"""A graph in OpenVINO itself, as a session."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError


class OpenVinoSession:
    """Runs the graph in a file in OpenVINO on the CPU."""

    provider = "openvino"

    def __init__(self, path: Path, settings: Mapping[str, str], threads: int | None) -> None:
        if threads is not None:
            settings = {**settings, "INFERENCE_NUM_THREADS": str(threads)}
        compiled = import_module("openvino").Core().compile_model(str(path), "CPU", dict(settings))
        self._names = [output.get_any_name() for output in compiled.outputs]
        self._request: Any = compiled.create_infer_request()

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._request = None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError once the session is closed."""
        if self._request is None:
            raise EngineError("this session is closed; open another")
        self._request.infer(dict(feeds), share_inputs=True)
        # Copied: the request writes the next outputs into the same memory.
        return {
            name: np.array(self._request.get_tensor(name).data, np.float32) for name in self._names
        }
