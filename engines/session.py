"""A bundle or an engine ready to run: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.engine_folders import Engine, EngineGraph, is_engine, load_engine
from speechquant.core.errors import EngineError, MissingPackageError, OptionError
from speechquant.engines.backends import (
    AUTO,
    CPU,
    PROVIDERS,
    Backend,
    backends_of,
    configure_cpu,
    how_it_runs,
)
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession, session_options

log = logging.getLogger(__name__)

ONNXRUNTIME = "onnxruntime"
_ON_GPUS = ("tensorrt", "tensorrt-rtx")
Tensors = Mapping[str, NDArray[Any]]
Opened = TypeVar("Opened", "Session", Seq2SeqSession)


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


def open_session(
    source: Bundle | Engine | str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    profile_to: Path | None = None,
) -> Session:
    """Return a session on a bundle or an engine of one graph, a folder or one already loaded.

    `provider` is what a bundle runs on: cpu, openvino (ONNX Runtime's plugin where it takes this
    processor, else the package openvino), or auto, which is openvino on Intel's processors. Without
    one it is cpu on every machine, so that a result does not depend on who made the processor. What
    is missing or fails is replaced by cpu with a warning. An engine runs on its own backend.
    `threads` is the number of cores one call may use, None for all. With `profile_to`, the start of
    a file's path, ONNX Runtime times every node. Raises BundleError, EngineError, OptionError.
    """
    _refuse_unknown(provider, threads)
    source = load_source(source)
    if isinstance(source, Engine):
        return _engine_session(source, provider, threads, profile_to)
    graph = source.only_graph
    return _first_to_open(
        provider, source.folder, lambda backend: backend.open(graph, threads, profile_to)
    )


def open_decoder_session(
    source: Bundle | Engine,
    *,
    provider: str | None = None,
    threads: int | None = None,
    profile_to: Path | None = None,
) -> Seq2SeqSession:
    """Return a session on three graphs, all on one provider, which is as `open_session` has it."""
    _refuse_unknown(provider, threads)
    traces = {
        # Two files of one name would be one.
        name: None if profile_to is None else profile_to.with_name(f"{profile_to.name}-{name}")
        for name in source.graphs
    }
    if isinstance(source, Engine):
        return _decoder_engine_session(source, provider, threads, traces)
    graphs = source.graphs

    def opened(backend: Backend) -> Seq2SeqSession:
        return Seq2SeqSession(
            {name: backend.open(graph, threads, traces[name]) for name, graph in graphs.items()}
        )

    return _first_to_open(provider, source.folder, opened)


def _refuse_unknown(provider: str | None, threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}; give at least 1")
    if provider not in (None, *PROVIDERS):
        raise OptionError(f"no provider {provider!r}; choose one of {', '.join(PROVIDERS)}")


def load_source(source: Bundle | Engine | str | Path) -> Bundle | Engine:
    """Return what lies in a folder, or `source` itself; raises BundleError or EngineError."""
    if isinstance(source, Bundle | Engine):
        return source
    folder = Path(source)
    return load_engine(folder) if is_engine(folder) else load_bundle(folder)


def _first_to_open(
    provider: str | None, folder: Path, opened: Callable[[Backend], Opened]
) -> Opened:
    *preferred, last = backends_of(provider or CPU)
    reasons: dict[str, None] = {}  # each once, in order
    for backend in preferred:
        try:
            session = opened(backend)
        except (EngineError, MissingPackageError) as error:
            reasons[str(error)] = None
        else:
            log.debug("%s runs in %s", folder, how_it_runs(session))
            return session
    if reasons:
        log.warning(
            "warning: %s; running on ONNX Runtime's own CPU provider instead", "; ".join(reasons)
        )
    return opened(last)


def _engine_session(
    engine: Engine, provider: str | None, threads: int | None, profile_to: Path | None
) -> Session:
    graph = engine.only_graph
    _refuse_other_provider(engine, provider)
    if engine.manifest.backend in _ON_GPUS:
        from speechquant.engines.tensorrt.session import TensorRtSession

        return TensorRtSession(engine)
    return _opened_in_onnxruntime(graph, threads, profile_to)


def _decoder_engine_session(
    engine: Engine,
    provider: str | None,
    threads: int | None,
    traces: Mapping[str, Path | None],
) -> Seq2SeqSession:
    _refuse_other_provider(engine, provider)
    if engine.manifest.backend in _ON_GPUS:
        from speechquant.engines.tensorrt.bound_session import open_together

        return Seq2SeqSession(open_together(engine.graphs))
    return Seq2SeqSession(
        {
            name: _opened_in_onnxruntime(graph, threads, traces[name])
            for name, graph in engine.graphs.items()
        }
    )


def _refuse_other_provider(engine: Engine, provider: str | None) -> None:
    backend = engine.manifest.backend
    if provider not in (None, AUTO) and (backend, provider) != (ONNXRUNTIME, CPU):
        raise OptionError(
            f"{engine.folder}: an engine of {backend}, which runs on nothing else; "
            f"leave the provider {provider!r} out, or give the bundle it was made from"
        )
    if backend not in (ONNXRUNTIME, *_ON_GPUS):
        raise EngineError(f"{engine.folder}: made for {backend!r}, which this version cannot run")


def _opened_in_onnxruntime(
    engine: EngineGraph, threads: int | None, profile_to: Path | None
) -> OnnxRuntimeSession:
    options = session_options(threads, profile_to)
    configure_cpu(options)
    try:
        return OnnxRuntimeSession(engine.engine_path, options)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())
        raise EngineError(
            f"{engine.folder}: ONNX Runtime refuses {engine.manifest.engine_file} ({reason}); "
            'make it again with "speechquant build"'
        ) from error
