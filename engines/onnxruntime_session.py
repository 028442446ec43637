"""A graph in ONNX Runtime, as a session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError

if TYPE_CHECKING:
    import onnxruntime

Entered = TypeVar("Entered", bound="OnnxRuntimeSession")


def session_options(
    threads: int | None, profile_to: Path | None = None
) -> onnxruntime.SessionOptions:
    """Return what every session of ONNX Runtime is opened with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; the rest is about the graph's spelling
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    return options


class OnnxRuntimeSession:
    """A session of ONNX Runtime on the graph in a file or in bytes.

    With `provider` another than cpu, `options` name what it runs on.
    """

    def __init__(
        self, graph: Path | bytes, options: onnxruntime.SessionOptions, provider: str = "cpu"
    ) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"] if provider == "cpu" else None
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.provider = provider

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # ONNX Runtime frees the graph with the object; nothing else holds it.
        self._session = None

    @property
    def raw(self) -> Any:
        """ONNX Runtime's own session, for those who bind what they run on."""
        return self._session

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError once the session is closed."""
        if self._session is None:
            raise EngineError("this session is closed; open another")
        values = self._session.run(self._outputs, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def end_profiling(self) -> Path:
        """Return the file with the times of each node, where the options asked for one."""
        return Path(self._session.end_profiling())
