"""Engines: what a backend runs, in a folder that also holds what turns audio and labels into text.

An engine is made from a bundle and is read like one, but its graphs are the backend's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from speechquant.core.artifact_folders import (
    FolderKind,
    check_files,
    new_described_folder,
    read_description,
)
from speechquant.core.bundles import (
    ENGINE_DESCRIPTION,
    VOCABULARY_FILE,
    ModelSpec,
    TensorSpec,
    spec_of,
)
from speechquant.core.errors import EngineError
from speechquant.core.graphs import Model
from speechquant.core.seq2seq import (
    ENCODER,
    GRAPHS,
    TASK,
    TOKENIZER_FILE,
    Seq2SeqSpec,
    seq2seq_spec_of,
)

FORMAT = "speechquant.engine/2"
_KIND = FolderKind("engine", ENGINE_DESCRIPTION, FORMAT, "speechquant build", EngineError)


@dataclass(frozen=True)
class Limits:
    """The least and the most that an engine takes of something, and what it is fastest at."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class EngineManifest:
    """How a graph's engine was made, and so where it runs.

    `target` is what it was built for (sm86, cpu); `toolchain` has the version of every package that
    its file depends on. `limits` are those of the inputs' named dimensions, none where any number
    will do. `rest` is the type of what is not quantized; `float32_nodes` are those that it would
    have overflowed.
    """

    backend: str
    engine_file: str
    target: str
    toolchain: Mapping[str, str]
    source: Mapping[str, Any]
    rest: str
    limits: Mapping[str, Limits] = field(default_factory=dict)
    float32_nodes: tuple[str, ...] = ()
    build_seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


class EngineGraph(Protocol):
    """One graph of an engine, as what runs it takes it; `name` is None where there is no other."""

    @property
    def folder(self) -> Path: ...

    @property
    def files(self) -> Mapping[str, str]: ...

    @property
    def manifest(self) -> EngineManifest: ...

    @property
    def name(self) -> str | None: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def engine_path(self) -> Path: ...


def file_of(graph: str | None, name: str) -> str:
    """Return what a file such as build.log is called for a graph, or for the only one."""
    return name if graph is None else f"{graph}.{name}"


@dataclass(frozen=True)
class Engine:
    """An engine of one graph on disk whose files have been checked."""

    folder: Path
    spec: ModelSpec
    files: Mapping[str, str]
    manifest: EngineManifest

    name = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the graph takes."""
        return self.spec.inputs

    @property
    def engine_path(self) -> Path:
        """What the backend loads."""
        return self.folder / self.manifest.engine_file

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def build_seconds(self) -> float:
        """How long the build took."""
        return self.manifest.build_seconds


@dataclass(frozen=True)
class EnginePart:
    """One graph of an engine of several."""

    folder: Path
    files: Mapping[str, str]
    manifest: EngineManifest
    name: str
    inputs: tuple[TensorSpec, ...]

    @property
    def engine_path(self) -> Path:
        """What the backend loads."""
        return self.folder / self.manifest.engine_file


@dataclass(frozen=True)
class Seq2SeqEngine:
    """An engine of an encoder-decoder model on disk: one of each graph, files checked."""

    folder: Path
    spec: Seq2SeqSpec
    files: Mapping[str, str]
    manifests: Mapping[str, EngineManifest]

    def part(self, name: str) -> EnginePart:
        """Return one of GRAPHS."""
        inputs = self.spec.graphs[name].inputs
        return EnginePart(self.folder, self.files, self.manifests[name], name, inputs)

    @property
    def manifest(self) -> EngineManifest:
        """That of the encoder: backend, target, toolchain, source and settings are all graphs'."""
        return self.manifests[ENCODER]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def build_seconds(self) -> float:
        """How long the builds of all graphs took."""
        return round(sum(manifest.build_seconds for manifest in self.manifests.values()), 3)


def graphs_of(engine: Engine | Seq2SeqEngine) -> list[EngineGraph]:
    """Return the graphs of an engine, one or several."""
    if isinstance(engine, Seq2SeqEngine):
        return [engine.part(name) for name in GRAPHS]
    return [engine]


def engine_bytes(engine: Engine | Seq2SeqEngine) -> int:
    """Return the size of what the backend loads, without logs and texts."""
    loaded = [graph.manifest.engine_file for graph in graphs_of(engine)]
    weights = [name for name in engine.files if name.endswith(".data")]
    return sum((engine.folder / name).stat().st_size for name in (*loaded, *weights))


def source_of(bundle: Model) -> dict[str, Any]:
    """Return what a manifest says of the bundle that an engine is made from."""
    return {
        "model_sha256": bundle.model_sha256,
        "precision": bundle.spec.precision,
        "made_from": dict(bundle.made_from),
    }


def is_engine(folder: Path) -> bool:
    """Return whether `folder` says that it is an engine."""
    return (folder / ENGINE_DESCRIPTION).is_file()


def make_engine(
    target: Path, spec: ModelSpec, make: Callable[[Path], EngineManifest], *, force: bool = False
) -> Engine:
    """Let `make` fill a folder and say how; then it is described, moved and returned.

    Raises what `make` raises, OutputExistsError or StorageError; then nothing is left behind.
    """
    _make(target, spec, lambda folder: {"manifest": asdict(make(folder))}, force=force)
    return load_engine(target)


def make_seq2seq_engine(
    target: Path,
    spec: Seq2SeqSpec,
    make: Callable[[Path], Mapping[str, EngineManifest]],
    *,
    force: bool = False,
) -> Seq2SeqEngine:
    """As `make_engine`, with a manifest for each graph."""

    def described(folder: Path) -> dict[str, Any]:
        return {"manifests": {name: asdict(manifest) for name, manifest in make(folder).items()}}

    _make(target, spec, described, force=force)
    return load_seq2seq_engine(target)


def _make(
    target: Path,
    spec: ModelSpec | Seq2SeqSpec,
    described: Callable[[Path], dict[str, Any]],
    *,
    force: bool,
) -> None:
    # Read when the block ends: what is to be said of an engine is known once it is built.
    document: dict[str, Any] = {"spec": asdict(spec)}
    with new_described_folder(target, _KIND, document, force=force) as folder:
        document.update(described(folder))


def load_engine(folder: Path) -> Engine:
    """Return the engine in `folder`, every file checked against its hash; raises EngineError."""
    document = read_description(folder, _KIND)
    if _is_seq2seq(document):
        raise EngineError(
            f"{folder}: an engine of a Whisper model, which this step does not take yet; give one "
            "of a CTC model"
        )
    with _readable(folder):
        files, spec = dict(document["files"]), spec_of(document["spec"])
        manifest = _manifest_of(document["manifest"])
    check_files(folder, {manifest.engine_file: "", VOCABULARY_FILE: "", **files}, _KIND)
    return Engine(folder, spec, files, manifest)


def load_seq2seq_engine(folder: Path) -> Seq2SeqEngine:
    """Return the engine of an encoder-decoder model in `folder`, checked; raises EngineError."""
    document = read_description(folder, _KIND)
    with _readable(folder):
        files, spec = dict(document["files"]), seq2seq_spec_of(document["spec"])
        manifests = {name: _manifest_of(document["manifests"][name]) for name in GRAPHS}
    needed = [TOKENIZER_FILE, *(manifest.engine_file for manifest in manifests.values())]
    check_files(folder, {**dict.fromkeys(needed, ""), **files}, _KIND)
    return Seq2SeqEngine(folder, spec, files, manifests)


def load_any_engine(folder: Path) -> Engine | Seq2SeqEngine:
    """Return the engine in `folder`, of whichever family; raises EngineError."""
    is_seq2seq = _is_seq2seq(read_description(folder, _KIND))
    return load_seq2seq_engine(folder) if is_seq2seq else load_engine(folder)


def _is_seq2seq(document: Mapping[str, Any]) -> bool:
    spec = document.get("spec")
    return isinstance(spec, dict) and spec.get("task") == TASK


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{folder / ENGINE_DESCRIPTION}: not as this version writes it ({error}); {_KIND.mend}"
        ) from error


def _manifest_of(document: Mapping[str, Any]) -> EngineManifest:
    limits = {name: Limits(**row) for name, row in document["limits"].items()}
    nodes = tuple(document["float32_nodes"])
    return EngineManifest(**{**document, "limits": limits, "float32_nodes": nodes})
