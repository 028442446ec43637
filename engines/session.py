"""A bundle or an engine ready to run: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.engine_folders import Engine, is_engine, load_engine
from speechquant.core.errors import EngineError, MissingPackageError, OptionError, choice_among
from speechquant.core.seq2seq import ALIGN, GRAPHS
from speechquant.engines.backends import Backend, EngineFormat
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.openvino.backend import OPENVINO_PACKAGE
from speechquant.engines.openvino.session import OpenVinoSession
from speechquant.engines.registry import backends_of, engine_backends, first_of, provider_names
from speechquant.engines.runners import AUTO, CPU, BoundSession, Session

log = logging.getLogger(__name__)

Opened = TypeVar("Opened", Session, Seq2SeqSession)


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
        provider, source.folder, lambda backend: backend.open_graph(graph, threads, profile_to)
    )


def open_decoder_session(
    source: Bundle | Engine,
    *,
    provider: str | None = None,
    threads: int | None = None,
    profile_to: Path | None = None,
) -> Seq2SeqSession:
    """Return a session on a model's graphs, all on one provider, as `open_session` has it."""
    _refuse_unknown(provider, threads)
    traces = {
        # Two files of one name would be one.
        name: None if profile_to is None else profile_to.with_name(f"{profile_to.name}-{name}")
        for name in (*GRAPHS, ALIGN)
    }
    if isinstance(source, Engine):
        return _decoder_engine_session(source, provider, threads, traces)
    graphs = source.graphs

    def opened(backend: Backend) -> Seq2SeqSession:
        def open_graph(name: str) -> BoundSession:
            return backend.open_graph(graphs[name], threads, traces[name])

        return Seq2SeqSession(
            {name: open_graph(name) for name in GRAPHS}, open_align=partial(open_graph, ALIGN)
        )

    return _first_to_open(provider, source.folder, opened)


def _refuse_unknown(provider: str | None, threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}; give at least 1")
    known = (AUTO, *provider_names())
    if provider is not None and provider not in known:
        raise OptionError(f"no provider {provider!r}; {choice_among(provider, known)}")


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
    nobody_asked = provider == AUTO
    for backend in preferred:
        try:
            session = opened(backend)
        except (EngineError, MissingPackageError) as error:
            reasons[str(error)] = None
            nobody_asked = nobody_asked and isinstance(error, MissingPackageError)
        else:
            log.debug("%s runs in %s", folder, how_it_runs(session))
            return session
    if reasons and nobody_asked:
        log.info("faster on this processor: pip install 'speechquant[openvino]'")
    elif reasons:
        log.warning(
            "warning: %s; running on ONNX Runtime's own CPU provider instead", "; ".join(reasons)
        )
    return opened(last)


def _engine_session(
    engine: Engine, provider: str | None, threads: int | None, profile_to: Path | None
) -> Session:
    return _format_of(engine, provider).open(engine, threads, profile_to)


def _decoder_engine_session(
    engine: Engine,
    provider: str | None,
    threads: int | None,
    traces: Mapping[str, Path | None],
) -> Seq2SeqSession:
    engines = _format_of(engine, provider)

    def open_graphs(names: Sequence[str]) -> Mapping[str, BoundSession]:
        return engines.open_graphs({name: engine.graphs[name] for name in names}, threads, traces)

    return Seq2SeqSession(open_graphs(GRAPHS), open_align=lambda: open_graphs([ALIGN])[ALIGN])


def _format_of(engine: Engine, provider: str | None) -> EngineFormat:
    name = engine.manifest.backend
    backend = engine_backends().get(name)
    if provider not in (None, AUTO, backend and backend.provider):
        raise OptionError(
            f"{engine.folder}: an engine of {name}, which runs on nothing else; "
            f"leave the provider {provider!r} out, or give the bundle it was made from"
        )
    if backend is None or backend.engines is None:
        raise EngineError(f"{engine.folder}: made for {name!r}, which this version cannot run")
    return backend.engines


def how_it_runs(session: Session | Seq2SeqSession) -> str:
    """Return what a bundle's session runs in; provider openvino may be either of two."""
    graph = session.encoder if isinstance(session, Seq2SeqSession) else session
    is_package = isinstance(graph, OpenVinoSession)
    return OPENVINO_PACKAGE.how if is_package else first_of(graph.provider).how
