"""Engines: what a backend runs, in a folder that also holds what turns audio and labels into text.

An engine is made from a bundle and is read like one, but its graphs are the backend's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.artifact_folders import (
    FolderKind,
    check_files,
    described_by,
    new_described_folder,
    read_description,
)
from speechquant.core.artifacts import Artifact, spec_from
from speechquant.core.bundles import ENGINE_DESCRIPTION, Bundle
from speechquant.core.ctc import CTC, MODEL
from speechquant.core.errors import EngineError
from speechquant.core.files import is_file
from speechquant.core.plain import member_of, value_of
from speechquant.core.seq2seq import TASK
from speechquant.core.specs import Spec, TensorSpec

FORMAT = "speechquant.engine/2"
# Fields that a description calls otherwise: its format is older than their names.
_WRITTEN_AS = {"float_type": "rest"}
_SOURCE_FACTS = {"model_sha256": str, "precision": str, "made_from": Mapping[str, Any]}
_FAMILIES = {CTC: "CTC", TASK: "Whisper"}  # what messages call the models of a task
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
    will do. `float_type` is that of what stays float; `float32_nodes` are those that it would have
    overflowed.
    """

    backend: str
    engine_file: str
    target: str
    toolchain: Mapping[str, str]
    source: Mapping[str, Any]
    float_type: str
    limits: Mapping[str, Limits] = field(default_factory=dict)
    float32_nodes: tuple[str, ...] = ()
    build_seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def file_of(graph: str, name: str) -> str:
    """Return what a file such as build.log is called for a graph, plainly for a CTC model's."""
    return name if graph == MODEL else f"{graph}.{name}"


@dataclass(frozen=True)
class EngineGraph:
    """One graph of an engine, as what runs it takes it."""

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
class Engine(Artifact):
    """An engine on disk, one of each graph, whose files have been checked."""

    manifests: Mapping[str, EngineManifest]

    @property
    def graphs(self) -> dict[str, EngineGraph]:
        """The graphs by name, in the order of the spec."""
        return {
            name: EngineGraph(self.folder, self.files, self.manifests[name], name, graph.inputs)
            for name, graph in self.spec.graphs.items()
        }

    @property
    def only_graph(self) -> EngineGraph:
        """The graph of a model that has one; raises EngineError."""
        if len(self.graphs) > 1:
            raise self.refused(CTC)
        (graph,) = self.graphs.values()
        return graph

    def refused(self, needed: str) -> EngineError:
        """Return the error of a step that takes models of the task `needed` alone."""
        own, other = (_FAMILIES.get(task, task) for task in (self.spec.task, needed))
        return EngineError(
            f"{self.folder}: an engine of a {own} model, which this step does not take yet; give "
            f"one of a {other} model"
        )

    @property
    def manifest(self) -> EngineManifest:
        """That of the first graph: backend, target, toolchain, source, settings are all graphs'."""
        return next(iter(self.graphs.values())).manifest

    @property
    def build_seconds(self) -> float:
        """How long the builds of all graphs took."""
        return round(sum(manifest.build_seconds for manifest in self.manifests.values()), 3)


def engine_bytes(engine: Engine) -> int:
    """Return the size of what the backend loads, without logs and texts."""
    loaded = [manifest.engine_file for manifest in engine.manifests.values()]
    weights = [name for name in engine.files if name.endswith(".data")]
    return sum((engine.folder / name).stat().st_size for name in (*loaded, *weights))


def source_of(bundle: Bundle) -> dict[str, Any]:
    """Return what a manifest says of the bundle that an engine is made from."""
    return {
        "model_sha256": bundle.model_sha256,
        "precision": bundle.spec.precision,
        "made_from": dict(bundle.made_from),
    }


def is_engine(folder: Path) -> bool:
    """Return whether `folder` says that it is an engine."""
    return is_file(folder / ENGINE_DESCRIPTION)


def make_engine(
    target: Path,
    spec: Spec,
    make: Callable[[Path], Mapping[str, EngineManifest]],
    *,
    force: bool = False,
) -> Engine:
    """Let `make` fill a folder and say how, by graph; then it is described, moved and returned.

    Raises what `make` raises, OutputExistsError or StorageError; then nothing is left behind.
    """
    # Read when the block ends: what is to be said of an engine is known once it is built.
    document: dict[str, Any] = {"spec": asdict(spec)}
    with new_described_folder(target, _KIND, document, force=force) as folder:
        document.update(_described(make(folder)))
    return load_engine(target)


def _described(manifests: Mapping[str, EngineManifest]) -> dict[str, Any]:
    """Return what a description says of the graphs: of a CTC model's without its name."""
    rows = {name: _renamed(asdict(m), _WRITTEN_AS) for name, m in manifests.items()}
    return {"manifest": rows[MODEL]} if MODEL in rows else {"manifests": rows}


def load_engine(folder: Path) -> Engine:
    """Return the engine in `folder`, every file checked against its hash; raises EngineError."""
    engine = described_engine(folder)
    engine_files = [manifest.engine_file for manifest in engine.manifests.values()]
    needed = dict.fromkeys([*engine_files, engine.spec.labels_file], "")
    check_files(folder, {**needed, **engine.files}, _KIND)
    return engine


def described_engine(folder: Path) -> Engine:
    """Return an engine as its description has it, whose files may lie elsewhere."""
    document = read_description(folder, _KIND)
    with described_by(folder / ENGINE_DESCRIPTION, _KIND):
        spec = spec_from(document)
        files: dict[str, str] = member_of(document, "files", Mapping[str, str])
        manifests = _manifests_of(document, spec)
    return Engine(folder, spec, files, manifests)


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


def _manifests_of(document: Mapping[str, Any], spec: Spec) -> dict[str, EngineManifest]:
    """Return the manifest of each graph; raises ValueError."""
    if MODEL in spec.graphs:
        return {MODEL: _manifest_of(document, "manifest")}
    named: Mapping[str, Any] = member_of(document, "manifests", Mapping[str, Any])
    return {name: _manifest_of(named, name) for name in spec.graphs}


def _manifest_of(document: Mapping[str, Any], key: str) -> EngineManifest:
    """Return a manifest whose source says what `source_of` does; raises ValueError."""
    written = member_of(document, key, Mapping[str, Any])
    fields = _renamed(written, {name: field for field, name in _WRITTEN_AS.items()})
    manifest: EngineManifest = value_of(EngineManifest, fields, key)
    for fact, kind in _SOURCE_FACTS.items():
        member_of(manifest.source, fact, kind)
    return manifest
