"""The names to type first: `import speechquant as sq`, then `sq.transcribe(folder, ["a.flac"])`.

load        a bundle or an engine, of whichever family, from its folder
load_bundle a bundle alone, which is what can be calibrated and quantized
transcribe  audio files to texts
export      a checkpoint to a bundle
calibrate   a bundle and audio to a scale table: CalibrationRequest, DataSet, MethodOptions
quantize    a float bundle to a quantized one: the same, and QuantizeOptions
build       a bundle to an engine: BuildOptions
evaluate    a recognizer on a data set to error rates
bench       candidates to a report of latency, errors and size
"""

import os
from typing import TYPE_CHECKING

from speechquant.core.lazy import lazy_names

# Unless this is set before its import, ONNX Runtime queues usage events in the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from speechquant.benchmarks.bench.run import run_bench as bench
    from speechquant.calibrators.calibrate import SearchOptions
    from speechquant.calibrators.methods import MethodOptions
    from speechquant.core.bundles import load_bundle
    from speechquant.engines.build import build_engine as build
    from speechquant.engines.build_options import BuildOptions
    from speechquant.engines.session import load_source as load
    from speechquant.exporter import export
    from speechquant.recipes import (
        CalibrationRequest,
        DataSet,
        QuantizeOptions,
        calibrate,
        evaluate,
        quantize,
    )
    from speechquant.transcribing import transcribe
    from speechquant.version import __version__

__all__ = [
    "BuildOptions",
    "CalibrationRequest",
    "DataSet",
    "MethodOptions",
    "QuantizeOptions",
    "SearchOptions",
    "__version__",
    "bench",
    "build",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "load_bundle",
    "quantize",
    "transcribe",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BuildOptions": "speechquant.engines.build_options",
        "CalibrationRequest": "speechquant.recipes",
        "DataSet": "speechquant.recipes",
        "MethodOptions": "speechquant.calibrators.methods",
        "QuantizeOptions": "speechquant.recipes",
        "SearchOptions": "speechquant.calibrators.calibrate",
        "__version__": "speechquant.version",
        "bench": "speechquant.benchmarks.bench.run:run_bench",
        "build": "speechquant.engines.build:build_engine",
        "calibrate": "speechquant.recipes",
        "evaluate": "speechquant.recipes",
        "export": "speechquant.exporter.export",
        "load_bundle": "speechquant.core.bundles",
        "load": "speechquant.engines.session:load_source",
        "quantize": "speechquant.recipes",
        "transcribe": "speechquant.transcribing",
    },
)
