"""A bundle or an engine ready to run: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.engine_folders import Engine, is_engine, load_engine
from speechquant.core.errors import BundleError, EngineError, MissingPackageError, OptionError
from speechquant.engines.backends import (
    AUTO,
    CPU,
    PROVIDERS,
    BackendProfile,
    configure_cpu,
    profiles_of,
)

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)

ONNXRUNTIME, TENSORRT, TENSORRT_RTX = "onnxruntime", "tensorrt", "tensorrt-rtx"
Entered = TypeVar("Entered", bound="OnnxRuntimeSession")
Tensors = Mapping[str, NDArray[Any]]


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
        self, graph: Path | bytes, options: onnxruntime.SessionOptions, provider: str = CPU
    ) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"] if provider == CPU else None
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

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError once the session is closed."""
        if self._session is None:
            raise EngineError("this session is closed; open another")
        values = self._session.run(self._outputs, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def end_profiling(self) -> Path:
        """Return the file with the times of each node, where the options asked for one."""
        return Path(self._session.end_profiling())


def open_session(
    source: Bundle | Engine | str | Path,
    *,
    provider: str = AUTO,
    threads: int | None = None,
    profile_to: Path | None = None,
) -> Session:
    """Return a session on a bundle or an engine, a folder of either or one already loaded.

    `provider` is what a bundle runs on: cpu, openvino, or auto, which is openvino on Intel's
    processors. One that is missing or fails is replaced by cpu with a warning. `threads` is the
    number of cores one call may use, None for all. With `profile_to`, the start of a file's path,
    ONNX Runtime times every node. Raises BundleError, EngineError, OptionError.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}; give at least 1")
    if provider not in PROVIDERS:
        raise OptionError(f"no provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    source = load_source(source)
    if isinstance(source, Engine):
        return _engine_session(source, provider, session_options(threads, profile_to))
    *preferred, last = profiles_of(provider)
    for profile in preferred:
        try:
            return _bundle_session(source, profile, threads, profile_to)
        except (EngineError, MissingPackageError) as error:
            log.warning("warning: %s; running on ONNX Runtime's own CPU provider instead", error)
    return _bundle_session(source, last, threads, profile_to)


def load_source(source: Bundle | Engine | str | Path) -> Bundle | Engine:
    """Return what lies in a folder, or `source` itself; raises BundleError or EngineError."""
    if isinstance(source, Bundle | Engine):
        return source
    folder = Path(source)
    return load_engine(folder) if is_engine(folder) else load_bundle(folder)


def _bundle_session(
    bundle: Bundle, profile: BackendProfile, threads: int | None, profile_to: Path | None
) -> Session:
    options = session_options(threads, profile_to)
    profile.configure(options, bundle, threads)
    graph = profile.graph_of(bundle)
    try:
        return OnnxRuntimeSession(graph, options, profile.provider)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        if profile.provider != CPU:
            raise EngineError(f"{profile.provider} refuses the graph ({reason})") from error
        raise BundleError(
            f"{bundle.folder}: ONNX Runtime refuses the graph ({reason}); "
            'export it again with "speechquant export"'
        ) from error


def _engine_session(engine: Engine, provider: str, options: onnxruntime.SessionOptions) -> Session:
    backend = engine.manifest.backend
    if provider != AUTO and (backend, provider) != (ONNXRUNTIME, CPU):
        raise OptionError(
            f"{engine.folder}: an engine of {backend}, which runs on nothing else; "
            f"leave the provider {provider!r} out, or give the bundle it was made from"
        )
    if backend in (TENSORRT, TENSORRT_RTX):
        from speechquant.engines.tensorrt_session import TensorRtSession

        return TensorRtSession(engine)
    if backend != ONNXRUNTIME:
        raise EngineError(f"{engine.folder}: made for {backend!r}, which this version cannot run")
    configure_cpu(options)
    try:
        return OnnxRuntimeSession(engine.engine_path, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise EngineError(
            f"{engine.folder}: ONNX Runtime refuses it ({reason}); "
            'make it again with "speechquant build"'
        ) from error
