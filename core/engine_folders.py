"""Engines: what a backend runs, in a folder that also holds what turns audio and labels into text.

An engine is made from a bundle and is read like one, but its graph is the backend's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.bundles import (
    ENGINE_DESCRIPTION,
    VOCABULARY_FILE,
    Bundle,
    ModelSpec,
    spec_of,
)
from speechquant.core.described_folders import (
    FolderKind,
    check_files,
    new_described_folder,
    read_description,
)
from speechquant.core.errors import EngineError

FORMAT = "speechquant.engine/1"
_KIND = FolderKind("engine", ENGINE_DESCRIPTION, FORMAT, "speechquant build", EngineError)


@dataclass(frozen=True)
class Limits:
    """The least and the most that an engine takes of something, and what it is fastest at."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class EngineManifest:
    """How an engine was made, and so where it runs.

    `target` is what it was built for (sm86, cpu); `toolchain` has the version of every package that
    its file depends on. `samples` and `batch` are None where any number will do. `rest` is the type
    of what is not quantized; `float32_nodes` are those that it would have overflowed.
    """

    backend: str
    engine_file: str
    target: str
    toolchain: Mapping[str, str]
    source: Mapping[str, Any]
    rest: str
    samples: Limits | None = None
    batch: Limits | None = None
    float32_nodes: tuple[str, ...] = ()
    build_seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """An engine on disk whose files have been checked."""

    folder: Path
    spec: ModelSpec
    files: Mapping[str, str]
    manifest: EngineManifest

    @property
    def engine_path(self) -> Path:
        """What the backend loads."""
        return self.folder / self.manifest.engine_file

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def source_of(bundle: Bundle) -> dict[str, Any]:
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
    # Read when the block ends: what is to be said of an engine is known once it is built.
    document: dict[str, Any] = {"spec": asdict(spec)}
    with new_described_folder(target, _KIND, document, force=force) as folder:
        document["manifest"] = asdict(make(folder))
    return load_engine(target)


def load_engine(folder: Path) -> Engine:
    """Return the engine in `folder`, every file checked against its hash; raises EngineError."""
    document = read_description(folder, _KIND)
    try:
        files, spec = dict(document["files"]), spec_of(document["spec"])
        manifest = _manifest_of(document["manifest"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"{folder / ENGINE_DESCRIPTION}: not as this version writes it ({error}); {_KIND.mend}"
        ) from error
    check_files(folder, {manifest.engine_file: "", VOCABULARY_FILE: "", **files}, _KIND)
    return Engine(folder, spec, files, manifest)


def _manifest_of(document: Mapping[str, Any]) -> EngineManifest:
    limits = {
        name: None if document[name] is None else Limits(**document[name])
        for name in ("samples", "batch")
    }
    nodes = tuple(document["float32_nodes"])
    return EngineManifest(**{**document, **limits, "float32_nodes": nodes})
