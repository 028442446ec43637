"""From a bundle to an engine, one builder for each backend; also a script of its own."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.bundles import ENGINE_DESCRIPTION, Bundle, load_bundle
from speechquant.core.engine_folders import (
    Engine,
    EngineManifest,
    engine_bytes,
    make_engine,
    source_of,
)
from speechquant.core.errors import OptionError, SpeechquantError
from speechquant.core.files import refuse_existing, refuse_unwritable, storage_errors
from speechquant.core.progress import OnStep
from speechquant.core.seq2seq import DECODER_DATA, PREFILL, STEP
from speechquant.engines.backends import EngineFormat
from speechquant.engines.build_options import (
    REST_TYPES,
    BuildOptions,
    GraphToBuild,
    batch_of,
    samples_of,
    three_numbers,
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
    refuse_existing(out, ENGINE_DESCRIPTION, force=force)
    refuse_unwritable(out)
    build = _Build(bundle, out, engines, options, on_step)
    graphs = family_of(bundle).graphs_to_build(bundle, options)
    return make_engine(out, bundle.spec, lambda folder: build.of(graphs, folder), force=force)


def _format_of(name: str) -> EngineFormat:
    known = engine_backends()
    engines = known[name].engines if name in known else None
    if engines is None:
        raise OptionError(f"no backend {name!r}; choose one of {', '.join(known)}")
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
                files = [folder / manifests[name].engine_file for name in (PREFILL, STEP)]
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
            rest=built.rest,
            limits=built.limits,
            float32_nodes=built.float32_nodes,
            build_seconds=round(time.perf_counter() - started, 3),
            settings=built.settings,
        )


def options_from_text(
    bundle: Bundle,
    *,
    backend: str,
    target: str | None = None,
    lengths: str | None = None,
    batch: str | None = None,
    rest: str | None = None,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
) -> BuildOptions:
    """Return options from what a command line says: lengths in seconds and batch as MIN,OPT,MAX."""
    seconds = None if lengths is None else three_numbers(lengths, "lengths")
    return BuildOptions(
        backend=backend,
        target=target,
        samples=None if seconds is None else samples_of(seconds, bundle.spec),
        batch=None if batch is None else batch_of(batch),
        rest=rest,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build.py", description="Build an engine from a bundle.")
    parser.add_argument("bundle", type=Path, help="folder that `speechquant quantize` wrote")
    parser.add_argument("out", type=Path, help="folder of the engine to write")
    parser.add_argument("--backend", required=True, choices=list(engine_backends()))
    parser.add_argument("--target", help="sm86, rtx3090, ... or current")
    parser.add_argument("--lengths", help="MIN,OPT,MAX of a clip in seconds")
    parser.add_argument("--batch", help="MIN,OPT,MAX of the clips in one call")
    parser.add_argument("--rest", choices=REST_TYPES, help="type of what is not quantized")
    parser.add_argument("--timing-cache", type=Path, help="file of TensorRT's measurements")
    parser.add_argument("--version-compatible", action="store_true", help="for later versions too")
    parser.add_argument("--hardware-compatible", action="store_true", help="for Ampere and later")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what a command line asks for and return its exit code."""
    asked = vars(_parser().parse_args(arguments))
    folder, out, force = asked.pop("bundle"), asked.pop("out"), asked.pop("force")
    try:
        bundle = load_bundle(folder)
        engine = build_engine(bundle, out, options_from_text(bundle, **asked), force=force)
    except SpeechquantError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    manifest = engine.manifest
    sys.stdout.write(
        f"{out}: {manifest.backend} for {manifest.target}, {engine_bytes(engine) / 1e6:.1f} MB, "
        f"built in {engine.build_seconds:.1f} s\n"
    )
    return 0


if __name__ == "__main__":
    # A script's own folder is searched first, and this one has a room called onnxruntime.
    sys.path[:] = [
        path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent
    ]
    sys.exit(main())
