"""From a bundle to an engine, one builder for each backend.

As a script, `python engines/build.py BUNDLE OUT --backend ...` is `speechquant build`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.bundles import ENGINE_DESCRIPTION, Bundle, load_bundle
from speechquant.core.engine_folders import (
    Engine,
    EngineManifest,
    make_engine,
    source_of,
)
from speechquant.core.errors import BundleError, OptionError, choice_among
from speechquant.core.files import refuse_existing, refuse_unwritable, storage_errors
from speechquant.core.graphs import OUTPUT
from speechquant.core.progress import OnStep
from speechquant.core.seq2seq import DECODER_DATA, DECODERS, STEP
from speechquant.engines.backends import EngineFormat
from speechquant.engines.build_options import (
    BuildOptions,
    GraphToBuild,
)
from speechquant.engines.families import family_of
from speechquant.engines.registry import engine_backends


def build_engine(
    bundle: Bundle | str | Path,
    out: str | Path,
    options: BuildOptions,
    *,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Engine:
    """Build the engine that `options` ask for into the folder `out`, and return it.

    Raises BundleError, OptionError, EngineError, OutputExistsError, StorageError and
    MissingPackageError; then nothing is written.
    """
    out = Path(out)
    if isinstance(bundle, str | Path):
        bundle = load_bundle(Path(bundle))
    engines = _format_of(options.backend)
    _refuse_rounded_outputs(bundle)
    refuse_existing(out, ENGINE_DESCRIPTION, force=force)
    refuse_unwritable(out)
    build = _Build(bundle, out, engines, options, on_step)
    graphs = family_of(bundle).graphs_to_build(bundle, options)
    return make_engine(out, bundle.spec, lambda folder: build.of(graphs, folder), force=force)


def _refuse_rounded_outputs(bundle: Bundle) -> None:
    """Raise BundleError for a bundle that no backend has integer products for."""
    if bundle.placement == OUTPUT:
        raise BundleError(
            f"{bundle.folder}: its activations are rounded where layers give them, and an engine's "
            "products take rounded inputs; quantize the float bundle with --placement input"
        )


def _format_of(name: str) -> EngineFormat:
    known = engine_backends()
    engines = known[name].engines if name in known else None
    if engines is None:
        raise OptionError(f"no backend {name!r}; {choice_among(name, known)}")
    return engines


@dataclass(frozen=True)
class _Build:
    """An engine that is on its way to `out`."""

    bundle: Bundle
    out: Path
    engines: EngineFormat
    options: BuildOptions
    on_step: OnStep | None

    def of(self, graphs: Mapping[str, GraphToBuild], folder: Path) -> dict[str, EngineManifest]:
        """Write the engine of each graph, and what turns labels into text."""
        with storage_errors(self.out):
            manifests = {name: self._manifest(graph, folder) for name, graph in graphs.items()}
            if self.engines.share_weights is not None and STEP in manifests:
                decoders = [manifests[name] for name in DECODERS if name in manifests]
                files = [folder / manifest.engine_file for manifest in decoders]
                self.engines.share_weights(files, folder / DECODER_DATA)
            self._copy(self.bundle.spec.text_files, folder)
        return manifests

    def _copy(self, names: Sequence[str], folder: Path) -> None:
        for name in names:
            if name in self.bundle.files:
                shutil.copyfile(self.bundle.folder / name, folder / name)

    def _manifest(self, graph: GraphToBuild, folder: Path) -> EngineManifest:
        started = time.perf_counter()
        engine_file = self.engines.file_of(graph.name)
        built = self.engines.build(graph, folder / engine_file, self.options, self.on_step)
        return EngineManifest(
            backend=self.options.backend,
            engine_file=engine_file,
            target=built.target,
            toolchain=built.toolchain,
            source=source_of(self.bundle),
            float_type=built.float_type,
            limits=built.limits,
            float32_nodes=built.float32_nodes,
            build_seconds=round(time.perf_counter() - started, 3),
            settings=built.settings,
        )


if __name__ == "__main__":
    # A process of its own: a script's folder is searched first, and this one has a room called
    # onnxruntime.
    command = [sys.executable, "-m", "speechquant.pipeline.command", "build", *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)
