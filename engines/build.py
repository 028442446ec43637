"""From a bundle to an engine, one builder for each backend; also a script of its own."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from speechquant.core.bundles import ENGINE_DESCRIPTION, TEXT_FILES, Bundle, load_bundle
from speechquant.core.engine_folders import (
    Engine,
    EngineManifest,
    make_engine,
    source_of,
)
from speechquant.core.errors import OptionError, SpeechquantError
from speechquant.core.files import refuse_existing, refuse_unwritable, storage_errors
from speechquant.core.progress import OnStep
from speechquant.engines.build_options import (
    REST_TYPES,
    BuildOptions,
    Built,
    batch_of,
    samples_of,
    three_numbers,
)

Builder = Callable[[Bundle, Path, BuildOptions, "OnStep | None"], Built]


def _tensorrt(bundle: Bundle, folder: Path, options: BuildOptions, on_step: OnStep | None) -> Built:
    from speechquant.engines.tensorrt_builder import build_tensorrt

    return build_tensorrt(bundle, folder, options, on_step)


def _onnxruntime(
    bundle: Bundle, folder: Path, options: BuildOptions, on_step: OnStep | None
) -> Built:
    from speechquant.engines.onnxruntime_engine import build_onnxruntime

    return build_onnxruntime(bundle, folder, options)


_BUILDERS: dict[str, Builder] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
    "onnxruntime": _onnxruntime,
}


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
    bundle, out = bundle if isinstance(bundle, Bundle) else load_bundle(Path(bundle)), Path(out)
    builder = _BUILDERS.get(options.backend)
    if builder is None:
        raise OptionError(f"no backend {options.backend!r}; choose one of {', '.join(_BUILDERS)}")
    refuse_existing(out, ENGINE_DESCRIPTION, force=force)
    refuse_unwritable(out)

    def make(folder: Path) -> EngineManifest:
        started = time.perf_counter()
        with storage_errors(out):
            built = builder(bundle, folder, options, on_step)
            for name in TEXT_FILES:
                if name in bundle.files:
                    shutil.copyfile(bundle.folder / name, folder / name)
        return _manifest(bundle, options, built, time.perf_counter() - started)

    return make_engine(out, bundle.spec, make, force=force)


def _manifest(
    bundle: Bundle, options: BuildOptions, built: Built, seconds: float
) -> EngineManifest:
    return EngineManifest(
        backend=options.backend,
        engine_file=built.engine_file,
        target=built.target,
        toolchain=built.toolchain,
        source=source_of(bundle),
        rest=built.rest,
        samples=built.samples,
        batch=built.batch,
        float32_nodes=built.float32_nodes,
        build_seconds=round(seconds, 3),
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
    parser.add_argument("--backend", required=True, choices=list(_BUILDERS))
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
        f"{out}: {manifest.backend} for {manifest.target}, {engine.size_bytes / 1e6:.1f} MB, "
        f"built in {manifest.build_seconds:.1f} s\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
