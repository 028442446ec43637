"""Bundles: a model as a folder of ONNX graphs, text files and a description that can be checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.artifact_folders import (
    FolderKind,
    check_files,
    described_by,
    digest_of,
    new_described_folder,
    read_description,
)
from speechquant.core.artifacts import SPECS, Artifact, spec_from, wrong_task
from speechquant.core.ctc import CTC
from speechquant.core.errors import BundleError
from speechquant.core.files import is_file
from speechquant.core.graphs import INPUT
from speechquant.core.plain import member_of
from speechquant.core.specs import GraphSpec, Spec, graph_file, is_graph_file

FORMAT = "speechquant.bundle/1"
DESCRIPTION = "bundle.json"
ENGINE_DESCRIPTION = "engine.json"
FLOAT_PRECISION = "fp32"
QUANTIZATION_FILE = "quantization.json"  # what a quantization saw and decided

BUNDLE_KIND = FolderKind("bundle", DESCRIPTION, FORMAT, "speechquant export", BundleError)


@dataclass(frozen=True)
class GraphPart:
    """One graph of a bundle, as whatever works on a graph takes it."""

    folder: Path
    name: str
    spec: GraphSpec
    precision: str

    @property
    def model_path(self) -> Path:
        """The graph's file."""
        return self.folder / graph_file(self.name)


@dataclass(frozen=True)
class Bundle(Artifact):
    """A bundle on disk whose files have been checked."""

    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graphs(self) -> dict[str, GraphPart]:
        """The graphs by name, in the order of the spec."""
        return {
            name: GraphPart(self.folder, name, spec, self.spec.precision)
            for name, spec in self.spec.graphs.items()
        }

    @property
    def only_graph(self) -> GraphPart:
        """The graph of a model that has one; raises BundleError."""
        if len(self.graphs) > 1:
            raise self.refused(CTC)
        (graph,) = self.graphs.values()
        return graph

    @property
    def model_sha256(self) -> str:
        """The hash of the graphs and their weights, which scale tables name."""
        return digest_of(
            {name: digest for name, digest in self.files.items() if is_graph_file(name)}
        )

    @property
    def placement(self) -> str:
        """Where the activations of a quantized bundle are rounded; see `core.graphs`."""
        scales = self.made_from.get("scales", {})
        return str(scales.get("placement", INPUT)) if isinstance(scales, dict) else INPUT

    @property
    def reading_sha256(self) -> str:
        """The hash of what lies between audio, graphs and text."""
        return digest_of(self.spec.reading(self.files))


@contextmanager
def new_bundle(
    target: Path, spec: Spec, made_from: Mapping[str, Any], *, force: bool = False
) -> Iterator[Path]:
    """Yield a folder for the bundle's files; when the block ends it is described, hashed and moved.

    Raises OutputExistsError or StorageError; then nothing of the bundle is left behind.
    """
    document = {"spec": asdict(spec), "made_from": dict(made_from)}
    with new_described_folder(target, BUNDLE_KIND, document, force=force) as folder:
        yield folder


def load_bundle(source: str | Path) -> Bundle:
    """Return the bundle in a folder, every file checked against its hash; raises BundleError."""
    bundle = described_bundle(Path(source))
    needed = dict.fromkeys([*map(graph_file, bundle.spec.graphs), bundle.spec.labels_file], "")
    check_files(bundle.folder, {**needed, **bundle.files}, BUNDLE_KIND)
    return bundle


def described_bundle(folder: Path) -> Bundle:
    """Return a bundle as its description has it, whose files may lie elsewhere."""
    if is_file(folder / ENGINE_DESCRIPTION):
        raise BundleError(f"{folder}: is an engine; give the bundle that it was built from")
    document = read_description(folder, BUNDLE_KIND)
    _refuse_unknown_task(folder, document)
    with described_by(folder / DESCRIPTION, BUNDLE_KIND):
        spec = spec_from(document)
        files: dict[str, str] = member_of(document, "files", Mapping[str, str])
        made_from: dict[str, Any] = member_of(document, "made_from", Mapping[str, Any])
    return Bundle(folder, spec, files, made_from)


def _refuse_unknown_task(folder: Path, document: Mapping[str, Any]) -> None:
    spec = document.get("spec")
    task = spec.get("task") if isinstance(spec, dict) else None
    if task not in (None, *SPECS):
        raise wrong_task(folder, task)


def require_float(bundle: Bundle) -> None:
    """Raise BundleError where the bundle is quantized already."""
    if bundle.spec.precision != FLOAT_PRECISION:
        raise BundleError(
            f"{bundle.folder}: already quantized ({bundle.spec.precision}); "
            "give the float bundle that it was made from"
        )
