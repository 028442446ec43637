"""A bundle's graph ready to run: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import BundleError, OptionError

if TYPE_CHECKING:
    import onnxruntime

Entered = TypeVar("Entered", bound="OnnxRuntimeSession")
Tensors = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """A context manager that runs one graph."""

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


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Return what every session of ONNX Runtime is opened with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; the rest is about the graph's spelling
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class OnnxRuntimeSession:
    """A session on ONNX Runtime's CPU provider, on the graph in a file or in bytes."""

    def __init__(self, graph: Path | bytes, options: onnxruntime.SessionOptions) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # ONNX Runtime frees the graph with the object; nothing else holds it.
        del self._session

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        values = self._session.run(self._outputs, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}


def open_session(bundle: Bundle | str | Path, *, threads: int | None = None) -> Session:
    """Return a session on `bundle`, a folder or one already loaded.

    `threads` is the number of cores one call may use, None for all. Raises BundleError or
    OptionError.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}; give at least 1")
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(Path(bundle))
    try:
        return OnnxRuntimeSession(bundle.model_path, session_options(threads))
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{bundle.folder}: ONNX Runtime refuses the graph ({reason}); "
            'export it again with "speechquant export"'
        ) from error
